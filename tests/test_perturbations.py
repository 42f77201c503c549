import pytest
import torch
from torch.nn import functional as F

from nula.model_card.tables import published
from nula.perturbations.appearance import (
    brightness,
    contrast,
    gaussian_blur,
    gaussian_noise,
    grayscale,
    shift,
    uniform_noise,
)
from nula.perturbations.sampling import checkerboard, decimate, resize, resize_each
from nula.perturbations.spectrum import add_wave, high_pass, low_pass
from nula.perturbations.suite import ROWS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp() -> torch.Tensor:
    """(1, 3, 32, 32): value (row + column) / 62 on every channel."""
    return ((torch.arange(32).view(-1, 1) + torch.arange(32)) / 62).expand(1, 3, 32, 32).clone()


def test_bilinear_resize_of_an_impulse():
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 4, 4] = 1.0
    result = resize(pixels, 0.5, "bilinear")
    # Down: without antialiasing the 2x2 block around the sample is averaged, 1/4 at (2, 2).
    # Up: weights 1/4, 3/4, 3/4, 1/4 on rows and columns 3 to 6.
    weights = torch.tensor([0.25, 0.75, 0.75, 0.25])
    expected = torch.zeros(32, 32)
    expected[3:7, 3:7] = 0.25 * torch.outer(weights, weights)
    torch.testing.assert_close(result[0, 1], expected)


def test_quarter_size_bilinear_skips_pixels():
    # Four to one without antialiasing: the sample point between pixels 1 and 2 of each four averages these two alone.
    pixels = torch.zeros(1, 1, 32, 32)
    pixels[..., 0::4] = pixels[..., 3::4] = 1.0
    assert resize(pixels, 0.25, "bilinear").max() == 0


def test_nearest_resize_keeps_even_rows_and_columns_and_equals_decimation(pixels):
    result = resize(pixels, 0.5, "nearest")
    assert torch.equal(result[..., ::2, ::2], pixels[..., ::2, ::2])
    assert torch.equal(result, decimate(pixels, 2))
    rows = {row.name: row for row in ROWS}
    nearest, decimated = rows["Resize x0.5 - Nearest"], rows["Decimate (x2 Factor)"]
    assert torch.equal(nearest.apply(pixels, seeded()), decimated.apply(pixels, seeded()))


def test_bicubic_resize_overshoots_and_is_clamped():
    step = torch.zeros(1, 3, 32, 32)
    step[..., 16:] = 1.0
    small = F.interpolate(step, size=(16, 16), mode="bicubic", align_corners=False)
    back = F.interpolate(small, size=(32, 32), mode="bicubic", align_corners=False)
    assert back.max() > 1
    assert torch.equal(resize(step, 0.5, "bicubic"), back.clamp(0, 1))


def test_resize_of_each_image_is_the_resize_of_a_batch(pixels):
    sides = torch.tensor([6, 8, 13, 14, 16, 19, 31, 32, 1, 2, 7, 9, 10, 11, 12, 15])
    result = resize_each(pixels, sides)
    for image, side, one in zip(pixels, sides.tolist(), result):
        torch.testing.assert_close(one, resize(image[None], side / 32, "bilinear")[0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="square images, got 32x16"):
        resize_each(pixels[..., :16], sides)


def test_decimate_repeats_the_kept_pixel():
    result = decimate(ramp())[0, 0] * 62
    assert result[0, :4].round().tolist() == [0, 0, 2, 2]
    assert result[5, :4].round().tolist() == [4, 4, 6, 6]


def test_checkerboard_signs_and_clamping():
    result = checkerboard(torch.full((1, 3, 32, 32), 0.5), 0.03)
    assert result[0, :, 0, 0].tolist() == pytest.approx([0.47] * 3)
    assert result[0, :, 0, 1].tolist() == pytest.approx([0.53] * 3)
    assert result[0, :, 1, 1].tolist() == pytest.approx([0.47] * 3)
    assert checkerboard(torch.zeros(1, 3, 32, 32), 0.05).min() == 0
    each = checkerboard(torch.full((2, 3, 32, 32), 0.5), torch.tensor([0.0, 0.1]).view(2, 1, 1, 1))
    assert each[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.4])


def test_shift_is_circular():
    pixels = ramp()
    right, down = shift(pixels, right=1), shift(pixels, down=1)
    assert torch.equal(right[..., 1:], pixels[..., :-1])
    assert torch.equal(right[..., 0], pixels[..., -1])
    assert torch.equal(down[..., 1:, :], pixels[..., :-1, :])
    assert torch.equal(shift(pixels, down=1, right=1), shift(right, down=1))


def test_photometric_values():
    pixels = torch.tensor([0.2, 0.6, 0.95]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    luma = 0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.95
    assert brightness(pixels, 0.1)[0, :, 0, 0].tolist() == pytest.approx([0.3, 0.7, 1.0])
    assert grayscale(pixels)[0, :, 5, 5].tolist() == pytest.approx([luma] * 3)
    expected = [0.8 * value + 0.2 * luma for value in (0.2, 0.6, 0.95)]
    assert contrast(pixels, 0.8)[0, :, 3, 3].tolist() == pytest.approx(expected)


def test_contrast_uses_the_mean_of_each_image():
    pixels = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    pixels[0, :, :16] = 0.5
    result = contrast(pixels, 0.8)
    assert result[0, 0, 0, 0].item() == pytest.approx(0.8 * 0.5 + 0.2 * 0.25)
    assert result[1, 0, 0, 0].item() == pytest.approx(1.0)


def test_gaussian_blur_kernel_and_border():
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[:, 1, 10, 10] = 1.0
    result = gaussian_blur(pixels)
    kernel = torch.exp(-0.5 * torch.arange(-2.0, 3.0) ** 2)
    kernel /= kernel.sum()
    torch.testing.assert_close(result[0, 1, 8:13, 8:13], torch.outer(kernel, kernel))
    assert result.sum().item() == pytest.approx(1.0)
    assert result[0, [0, 2]].max() == 0
    edge = torch.zeros(1, 1, 32, 32)
    edge[..., 1] = 1.0  # reflected about column 0, so that column 0 sees it on both sides
    assert gaussian_blur(edge)[0, 0, 16, 0].item() == pytest.approx(2 * kernel[1].item())


def test_gaussian_noise_has_its_moments_and_follows_its_seed():
    gray = torch.full((64, 3, 32, 32), 0.5)
    noise = gaussian_noise(gray, 0.05, seeded()) - gray
    assert noise.mean().item() == pytest.approx(0, abs=5e-4)
    assert noise.std().item() == pytest.approx(0.05, rel=0.01)
    assert torch.equal(gaussian_noise(gray, 0.05, seeded(1)), gaussian_noise(gray, 0.05, seeded(1)))
    assert not torch.equal(gaussian_noise(gray, 0.05, seeded(1)), gaussian_noise(gray, 0.05, seeded(2)))


def test_uniform_noise_fills_its_range():
    gray = torch.full((64, 3, 32, 32), 0.5)
    noise = uniform_noise(gray, 0.05, seeded()) - gray
    assert noise.abs().max().item() == pytest.approx(0.05, abs=1e-5)
    assert noise.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.01)


def test_the_suite_has_the_twenty_published_rows_in_order():
    assert [row.name for row in ROWS] == list(published("published_v0"))
    assert len(ROWS) == 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_pure_function_into_the_unit_range(row, pixels):
    before = pixels.clone()
    first, second = row.apply(pixels, seeded()), row.apply(pixels, seeded())
    assert torch.equal(pixels, before)
    assert torch.equal(first, second)
    assert first.shape == pixels.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, pixels) == (row.name == "Clean (CIFAR-10 Test)")


COMPOSITIONS = {
    "Resize x0.5 + Decimate x2": ("Resize (0.5 Scale)", "Decimate (x2 Factor)"),
    "Decimate x2 + Resize x0.25": ("Decimate (x2 Factor)", "Resize x0.25 - Bilinear"),
    "Resize x0.5 + Checkerboard x0.03": ("Resize (0.5 Scale)", "Checkerboard ε = 0.03"),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions_apply_their_parts_in_order(name, pixels):
    rows = {row.name: row.apply for row in ROWS}
    first, second = (rows[part] for part in COMPOSITIONS[name])
    assert torch.equal(rows[name](pixels, seeded()), second(first(pixels, seeded()), seeded()))


@pytest.mark.parametrize(("down", "right"), [(0, 1), (3, -5), (-16, 0), (-16, -16), (7, 15)])
def test_a_wave_has_one_frequency_its_amplitude_and_a_sign_for_each_channel(down, right):
    gray = torch.full((6, 3, 32, 32), 0.5)
    added = add_wave(gray, down / 32, right / 32, 0.1, torch.Generator().manual_seed(0)) - gray
    torch.testing.assert_close(added.square().mean(dim=(2, 3)).sqrt(), torch.full((6, 3), 0.1))
    power = torch.fft.fft2(added).abs().square()
    expected = torch.zeros(32, 32)
    expected[down, right] += 1
    expected[-down, -right] += 1
    torch.testing.assert_close(power / power.sum(dim=(2, 3), keepdim=True), (expected / 2).expand(6, 3, 32, 32))
    signs = (added[:, :, 0, 0] / added[0, 0, 0, 0]).round()
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert not all(row.unique().numel() == 1 for row in signs)
    other = add_wave(gray, down / 32, right / 32, 0.1, torch.Generator().manual_seed(0)) - gray
    assert torch.equal(other, added)


def test_a_wave_of_another_size_has_whole_cycles():
    gray = torch.full((1, 3, 24, 40), 0.5)
    added = add_wave(gray, 0.25, -0.1, 0.1, torch.Generator().manual_seed(0)) - gray
    power = torch.fft.fft2(added).abs().square()
    assert power[0, 0, 6, -4] > 0.49 * power[0, 0].sum()


@pytest.mark.parametrize("cutoff", [1 / 32, 0.2, 0.5])
def test_low_pass_and_high_pass_share_the_frequencies_out(cutoff):
    pixels = 0.4 + 0.2 * torch.rand(2, 3, 32, 30)
    low, high = low_pass(pixels, cutoff), high_pass(pixels, cutoff)
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(low + high - mean, pixels)
    torch.testing.assert_close(low.mean(dim=(2, 3), keepdim=True), mean)
    torch.testing.assert_close(high.mean(dim=(2, 3), keepdim=True), mean)
    down, right = torch.fft.fftfreq(32).view(-1, 1), torch.fft.fftfreq(30).view(1, -1)
    beyond = (down**2 + right**2).sqrt() > cutoff + 1e-6
    assert (torch.fft.fft2(low).abs() * beyond).max() < 1e-3
    assert (torch.fft.fft2(high - mean).abs() * ~beyond).max() < 1e-3
    torch.testing.assert_close(low_pass(pixels, 0.71), pixels)
