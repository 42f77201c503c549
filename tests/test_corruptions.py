"""The look-alikes of the common corruptions: deterministic, stronger with severity, and each what its name says."""

import numpy as np
import pytest
import torch

from nula.evaluation.studies.corruptions import corruption_rows, mean_lines
from nula.perturbations.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, STANDARD, corrupt
from nula.records.table import Table


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_deterministic_bounded_bytes_and_grows(name, pixels):
    changes = []
    for severity in SEVERITIES:
        corrupted = corrupt(pixels, name, severity, seeded())
        assert corrupted.shape == pixels.shape
        assert corrupted.dtype == torch.float32
        assert corrupted.min() >= 0
        assert corrupted.max() <= 1
        torch.testing.assert_close(corrupted * 255, (corrupted * 255).round(), atol=1e-3, rtol=0)
        assert torch.equal(corrupted, corrupt(pixels, name, severity, seeded()))
        changes.append((corrupted - pixels).square().mean().sqrt().item())
    assert min(changes) > 0.002
    # Elastic's constants trade a coarse affine map at severity 1 for fine wobbling at 5, which moves pixels less.
    assert changes[4] > changes[0] or name == "elastic_transform"


@pytest.mark.parametrize(("name", "severity"), [("fogg", 1), ("fog", 0), ("fog", 6)])
def test_what_does_not_exist_is_refused(name, severity, pixels):
    with pytest.raises(ValueError, match="no corruption"):
        corrupt(pixels, name, severity, seeded())


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate",
     "jpeg_compression"],
)  # fmt: skip
def test_an_even_image_stays_what_it_is(name):
    gray = torch.full((2, 3, 32, 32), 128 / 255)
    for severity in SEVERITIES:
        assert (corrupt(gray, name, severity, seeded()) - gray).abs().max() <= 1.01 / 255


def test_noise_has_its_variance():
    gray = torch.full((64, 3, 32, 32), 0.5)
    assert CORRUPTIONS["gaussian_noise"](gray, 5, seeded()).std().item() == pytest.approx(0.10, rel=0.02)
    shot = CORRUPTIONS["shot_noise"](gray, 5, seeded())
    assert shot.mean().item() == pytest.approx(0.5, rel=0.01)
    assert shot.std().item() == pytest.approx((0.5 / 50) ** 0.5, rel=0.02)
    hit = CORRUPTIONS["impulse_noise"](gray, 5, seeded())
    assert (hit != 0.5).float().mean().item() == pytest.approx(0.07, rel=0.05)
    assert (hit == 1).sum().item() == pytest.approx((hit == 0).sum().item(), rel=0.1)


def test_brightness_keeps_hue_and_saturation():
    color = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    brighter = CORRUPTIONS["brightness"](color, 2, seeded())[0, :, 0, 0]
    torch.testing.assert_close(brighter, torch.tensor([0.25, 0.5, 0.125]))
    black = CORRUPTIONS["brightness"](torch.zeros(1, 3, 32, 32), 2, seeded())
    torch.testing.assert_close(black, torch.full((1, 3, 32, 32), 0.1))


def test_motion_blur_smears_a_point_along_a_line_from_it():
    point = torch.zeros(8, 3, 32, 32)
    point[:, :, 16, 16] = 1.0
    smeared = CORRUPTIONS["motion_blur"](point, 5, seeded())
    torch.testing.assert_close(smeared.sum(dim=(2, 3)), torch.ones(8, 3))
    rows, columns = torch.nonzero(smeared[:, 0].amax(dim=0), as_tuple=True)
    assert columns.max() == 16  # an angle from −45° to 45° moves it one way, and up or down by no more
    assert columns.min() < 12
    assert ((rows - 16).abs() <= 16 - columns + 1).all()


def test_glass_moves_pixels_by_one_at_most():
    position = (torch.arange(32).view(-1, 1) * 4 / 255).expand(1, 3, 32, 32)
    moved = CORRUPTIONS["glass_blur"](position, 1, seeded())
    assert ((moved - position).abs() <= 4.5 / 255).all()
    assert (moved != position).float().mean() > 0.3


def test_fog_is_smooth_and_bright():
    black_with_a_light = torch.zeros(4, 3, 32, 32)
    black_with_a_light[:, :, 0, 0] = 1.0
    fog = CORRUPTIONS["fog"](black_with_a_light, 5, seeded())[:, 0, 1:, 1:]
    assert fog.amax(dim=(1, 2)).min() > 0.4
    neighbours = (fog[:, 1:] - fog[:, :-1]).abs().mean()
    assert neighbours < 0.5 * fog.std()


def test_official_arrays_are_read_as_they_are(tmp_path):
    stacked = np.random.default_rng(0).integers(0, 256, (5 * 20, 32, 32, 3), dtype=np.uint8)
    labels = torch.arange(20) % 10
    np.save(tmp_path / "frost.npy", stacked)
    np.save(tmp_path / "labels.npy", np.tile(labels.numpy(), 5).astype(np.uint8))
    rows = corruption_rows(tmp_path, labels)
    assert [row.name for row in rows] == [f"frost {severity}" for severity in SEVERITIES]
    assert np.array_equal(rows[3].images, stacked[60:80])
    with pytest.raises(ValueError, match="does not hold the labels of the data set"):
        corruption_rows(tmp_path, labels.flip(0))
    np.save(tmp_path / "fog.npy", stacked[:50])
    with pytest.raises(ValueError, match=r"fog\.npy holds uint8 \(50, 32, 32, 3\), must be uint8 \(100, 32, 32, 3\)"):
        corruption_rows(tmp_path, labels)
    with pytest.raises(FileNotFoundError, match="holds none of CIFAR-10-C's arrays"):
        corruption_rows(tmp_path / "nowhere", labels)
    assert len(corruption_rows(None, labels)) == len(CORRUPTIONS) * 5


def test_the_mean_of_cifar10c_is_over_the_standard_fifteen():
    """Right on every image under the fifteen, on none under the four extra ones."""
    names = [*STANDARD, *EXTRA]
    assert (len(STANDARD), len(EXTRA), set(CORRUPTIONS) < set(STANDARD)) == (15, 4, True)
    rows = tuple(f"{name} {severity}" for name in names for severity in SEVERITIES)
    labels = np.zeros(8, np.uint8)
    predictions = np.array([[row.split()[0] in EXTRA] * 8 for row in rows], np.uint8)
    predictions[rows.index("fog 5"), :4] = 1
    provenance = {"arrays_sha256": {}}
    table = Table(rows=rows, seeds=(0,) * 95, predictions=predictions, labels=labels, provenance=provenance)
    standard, extra = mean_lines(table)
    assert standard.startswith(f"mean over the 15 corruptions of CIFAR-10-C, standard: {100 - 50 / 75:.2f} %")
    assert extra.startswith("mean over the 4 corruptions of CIFAR-10-C, extra: 0.00 %")
    few = slice(0, 70)  # no jpeg_compression, and no extra one
    part = Table(rows=rows[few], seeds=(0,) * 70, predictions=predictions[few], labels=labels, provenance=provenance)
    assert mean_lines(part) == [
        "mean over the 15 corruptions of CIFAR-10-C, standard: not measured, as there is no jpeg_compression"
    ]


def test_arrays_come_in_the_papers_order_with_the_extra_ones_last(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(5, np.uint8))
    for name in ("spatter", "brightness", "frost"):
        np.save(tmp_path / f"{name}.npy", np.zeros((5, 32, 32, 3), np.uint8))
    rows = corruption_rows(tmp_path, torch.zeros(1, dtype=torch.long))
    assert [row.name for row in rows[::5]] == ["frost 1", "brightness 1", "spatter 1"]
    (tmp_path / "frost.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"frost\.npy is damaged"):
        corruption_rows(tmp_path, torch.zeros(1, dtype=torch.long))
