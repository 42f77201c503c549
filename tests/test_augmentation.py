"""v2's augmentation, and how it is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import unaugmented
from PIL import Image, ImageOps
from torch.nn import functional as F

from nula.data import to_pixels
from nula.perturbations.corruptions import EXTRA, STANDARD
from nula.perturbations.sampling import KERNELS, resize_each
from nula.train import augmix as chains
from nula.train.augmentation import add_noise, augment, cut_out, mix_channels
from nula.train.recipe import OPERATORS, V2, Recipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(train_split) -> torch.Tensor:
    return to_pixels(train_split.images[:64])


def only(**changes: object) -> Recipe:
    """V2 without augmentation but for `changes`."""
    return replace(unaugmented(V2), **changes)


def test_the_mix_holds_no_common_corruption_besides_noise_blur_and_resampling():
    allowed = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"}  # noise
    allowed |= {"defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "gaussian_blur"}  # blur
    allowed |= {"pixelate"}  # resampling
    own = {*chains.GEOMETRIC, *chains.TONAL, *OPERATORS, *KERNELS, "noise", "cutout", "channel_mixing"}
    assert own == {
        *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
        *("autocontrast", "equalize", "posterize", "solarize"),
        *("resize", "decimate", "checkerboard", "bilinear", "area", "gaussian"),
        *("noise", "cutout", "channel_mixing"),
    }
    others = {*STANDARD, *EXTRA} - allowed
    assert {"contrast", "brightness", "saturate", "fog", "frost", "jpeg_compression", "elastic_transform"} <= others
    assert not own & others
    # AugMix's own exclusions.
    assert not own & {"contrast", "color", "brightness", "sharpness"}


def test_a_batch_is_images_of_the_same_size_within_range(train_split):
    pixels, operators = augment(train_split.images, torch.arange(64), V2, seeded())
    assert pixels.shape == (64, 3, 32, 32)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert pixels.isfinite().all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert operators.shape == (64,)
    again, _ = augment(train_split.images, torch.arange(64), V2, seeded())
    assert torch.equal(again, pixels)
    other, _ = augment(train_split.images, torch.arange(64), V2, seeded(1))
    assert (other != pixels).flatten(1).any(dim=1).all()


def test_a_recipe_without_them_is_the_image(train_split):
    pixels, _ = augment(train_split.images, torch.arange(8), only(), seeded())
    assert torch.equal(pixels, to_pixels(train_split.images[:8]))


def test_chains_are_of_a_share_of_the_batch_whatever_the_views(train_split):
    share = []
    for seed in range(40):  # of two views of each image
        pixels, _ = augment(train_split.images, torch.arange(20).repeat(2), only(augmix_share=0.6), seeded(seed))
        changed = (pixels != to_pixels(train_split.images[:20]).repeat(2, 1, 1, 1)).flatten(1).any(dim=1).view(2, 20)
        assert changed.sum() == 24
        share.append(torch.stack([changed[0], changed.all(dim=0), ~changed.any(dim=0)]).float().mean(dim=1))
    assert torch.stack(share).mean(dim=0).tolist() == pytest.approx([0.6, 0.36, 0.16], abs=0.05)


def test_chains_are_of_a_share_of_the_images_alone(train_split):
    pixels, _ = augment(train_split.images, torch.arange(64), only(augmix_share=0.25), seeded())
    changed = (pixels != to_pixels(train_split.images[:64])).flatten(1).any(dim=1)
    assert changed.sum() == 16
    assert changed[:16].sum() < 16


def test_chains_keep_what_an_image_shows(images):
    mixed = chains.augmix(images, seeded())
    assert mixed.min() >= -1e-5
    assert mixed.max() <= 1 + 1e-5
    correlation = F.cosine_similarity((mixed - mixed.mean()).flatten(1), (images - images.mean()).flatten(1))
    assert correlation.mean() > 0.75
    assert correlation.max() > 0.99
    assert correlation.min() < 0.9


@pytest.mark.parametrize(("name", "index"), [(name, index) for index, name in enumerate(chains.GEOMETRIC)])
def test_geometric_operators_move_as_named(name, index, monkeypatch):
    """A step along x, y or around the middle, of a spot off the middle."""
    spot = torch.zeros(1, 1, 32, 32)
    spot[..., 8:11, 20:23] = 1.0  # rows 8 to 10, columns 20 to 22
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([index]))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1.0))  # the largest amount
    moved = chains.transform(spot, seeded())
    places = torch.arange(32.0)

    def centre(pixels: torch.Tensor) -> tuple[float, float]:
        mass = pixels.sum()
        return (pixels.sum(dim=3) @ places / mass).item(), (pixels.sum(dim=2) @ places / mass).item()

    (row, column), (new_row, new_column) = centre(spot), centre(moved)
    down, right = new_row - row, new_column - column
    if name.endswith("_x"):
        assert abs(down) < 0.2
        assert abs(right) > 0.4
    elif name.endswith("_y"):
        assert abs(right) < 0.2
        assert abs(down) > 0.4
    else:
        assert abs(right) > 0.5
        assert abs(down) > 0.5
        radius = ((row - 15.5) ** 2 + (column - 15.5) ** 2) ** 0.5
        assert ((new_row - 15.5) ** 2 + (new_column - 15.5) ** 2) ** 0.5 == pytest.approx(radius, abs=0.2)
    if name.startswith("translate"):
        assert abs(down) + abs(right) == pytest.approx(0.3 * 32 / 3, abs=0.05)


def test_tonal_operators_are_pillows(train_split):
    array = train_split.images[3].numpy()
    picture, pixels = Image.fromarray(array), to_pixels(train_split.images[3:4])

    def of_pillow(result: Image.Image) -> torch.Tensor:
        return to_pixels(torch.from_numpy(np.array(result)).unsqueeze(0))

    torch.testing.assert_close(
        chains.autocontrast(pixels), of_pillow(ImageOps.autocontrast(picture)), rtol=0, atol=1 / 128
    )
    posterized = chains.posterize(pixels, torch.full((1, 1, 1, 1), 3.0))
    torch.testing.assert_close(posterized, of_pillow(ImageOps.posterize(picture, 3)))
    # A histogram of 64 bins, not of 256.
    equalized = of_pillow(ImageOps.equalize(picture))
    assert (chains.equalize(pixels) - equalized).abs().mean() < 0.02
    assert (chains.equalize(pixels) - pixels).abs().mean() > 0.05


@pytest.mark.parametrize("kernel", KERNELS)
def test_resampling_kernels_pass_constants_and_remove_detail(kernel):
    places = torch.full((1,), KERNELS.index(kernel))
    constant = torch.full((1, 3, 32, 32), 0.3)
    for side in (7, 16, 25, 32):
        torch.testing.assert_close(resize_each(constant, torch.tensor([side]), places), constant)
    noise = torch.rand(1, 3, 32, 32, generator=seeded())
    spreads = [resize_each(noise, torch.tensor([side]), places).std().item() for side in (8, 16, 24)]
    if kernel != "bilinear":  # without antialiasing, which samples a grid of 8 of 32 like a quarter of the pixels
        assert spreads == sorted(spreads)
    assert spreads[0] < noise.std() * 0.6
    torch.testing.assert_close(resize_each(noise, torch.tensor([32]), places), noise)


def test_the_area_kernel_averages_and_the_gaussian_is_a_gaussian():
    ramp = torch.rand(1, 1, 32, 32, generator=seeded())
    by_area = resize_each(ramp, torch.tensor([8]), torch.tensor([1]))
    expected = F.interpolate(F.avg_pool2d(ramp, 4), size=32, mode="bilinear")
    torch.testing.assert_close(by_area, expected)
    impulse = torch.zeros(1, 1, 33, 33)
    impulse[..., 16, 16] = 1.0
    blurred = resize_each(impulse, torch.tensor([11]), torch.tensor([2]))[0, 0]  # sigma (33 / 11 - 1) / 2 = 1
    weights = torch.exp(-0.5 * (torch.arange(33.0) - 16) ** 2)
    torch.testing.assert_close(blurred, torch.outer(weights, weights) / weights.sum() ** 2, rtol=0, atol=1e-6)


def test_channels_are_pulled_towards_one_gray(images):
    many = images.repeat(8, 1, 1, 1)
    mixed = mix_channels(many, 0.5, seeded())
    changed = (mixed != many).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.09)
    spread = (many.amax(dim=1) - many.amin(dim=1)).mean(dim=(1, 2))
    after = (mixed.amax(dim=1) - mixed.amin(dim=1)).mean(dim=(1, 2))
    ratio = (after / spread)[changed & (spread > 0.02)]
    assert ratio.max() <= 1 + 1e-4
    assert ratio.min() < 0.05
    assert ratio.mean().item() == pytest.approx(0.5, abs=0.08)


def test_noise_has_the_drawn_strength_and_shares():
    gray = torch.full((4000, 3, 8, 8), 0.5)
    recipe = only(noise_probability=0.5, noise_sigma=(0.04, 0.08), noise_sparse_share=0.25)
    noise = add_noise(gray, recipe, seeded()) - gray
    noisy = (noise != 0).flatten(1).any(dim=1)
    assert noisy.float().mean().item() == pytest.approx(0.5, abs=0.03)
    still = (noise[noisy] == 0).flatten(1).float().mean(dim=1)  # share of the values that are left alone
    sparse = still > 0.5
    assert sparse.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert still[sparse].mean().item() == pytest.approx(0.75, abs=0.01)
    sigma = noise[noisy][~sparse].flatten(1).std(dim=1)
    assert sigma.mean().item() == pytest.approx(0.06, rel=0.03)
    assert sigma.min() > 0.03
    assert sigma.max() < 0.095
    assert noise[noisy][sparse].flatten(1).square().mean().sqrt().item() == pytest.approx(0.061, rel=0.05)


def test_a_square_of_half_of_the_images_is_cut_out():
    white = torch.ones(2000, 3, 32, 32)
    cut = cut_out(white, only(cutout_probability=0.5, cutout_size=8), seeded())
    gray = (cut == 0.5).all(dim=1)
    areas = gray.flatten(1).sum(dim=1)
    assert (areas > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert areas.max() == 64
    assert 16 <= areas[areas > 0].min() <= 20  # a quarter, in a corner
    assert (gray.float().mean(dim=0) > 0).all()  # every place is cut at times
    assert ((cut == 0.5) | (cut == 1)).all()
