"""Studies that are tables of many rows, against closed forms: waves, resolutions, shifts."""

import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SAMPLE

from nula.cli import main
from nula.data import Split
from nula.evaluation.classifiers import of_function
from nula.evaluation.measuring import evaluate
from nula.evaluation.studies import fourier, resolution, shifts
from nula.perturbations.spectrum import add_wave
from nula.perturbations.suite import ROWS
from nula.records.table import Table


def of_gray_images(function, classes, rows, count=40):
    """The table of a function of pixels (B, 3, 32, 32) on gray images, of which all are of class 0."""
    data = Split.of(
        torch.full((count, 32, 32, 3), 128, dtype=torch.uint8), torch.zeros(count, dtype=torch.long), classes
    )
    return evaluate(of_function(function, len(classes)), data, rows, Accelerator(cpu=True), {})


def test_the_heat_map_of_a_linear_model_has_its_own_frequency_alone():
    """A model that answers class 1 where the red channel holds a wave of one sign errs under that wave alone."""
    gray = torch.full((1, 3, 32, 32), 128 / 255)
    own = add_wave(gray, -5 / 32, 9 / 32, 0.1, torch.Generator().manual_seed(0))[0, 0] - 128 / 255

    def linear(pixels):
        response = ((pixels[:, 0] - 128 / 255) * own).mean(dim=(1, 2)) / own.square().mean()
        return torch.stack([torch.full_like(response, 0.3), response], dim=1)

    rows = fourier.fourier_rows()
    assert len({row.name for row in rows}) == len(rows) == 1 + (32 * 32 + 4) // 2 - 1 + 2 * 15
    errors = fourier.heat_map(of_gray_images(linear, ("no", "yes"), rows))
    there = errors > 0
    assert there.sum() == 2
    assert errors[16 + 5, 16 - 9] == errors[16 - 5, 16 + 9]
    assert 20 < errors[16 + 5, 16 - 9] < 80  # half of the signs
    heat = np.full((32, 32), np.nan)
    for down, right in fourier.half_plane():
        heat[16 + down, 16 + right] = 1
        heat[(16 - down) % 32, (16 - right) % 32] = 1
    assert np.isnan(heat).sum() == np.isnan(heat[16, 16]) == 1


def test_the_consistency_of_a_model_that_reads_one_pixel():
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[0, 3] = 255  # the row at 0 is bright after a shift by -3, of whatever columns
    data = Split.of(images, torch.zeros(2, dtype=torch.long), ("dark", "bright"))
    rows = shifts.shift_rows()
    assert len(rows) == 17 * 17

    def corner(pixels):
        return torch.stack([torch.full((len(pixels),), 0.5), pixels[:, 0, 0, 0]], dim=1)

    def average(pixels):
        return torch.stack([torch.full((len(pixels),), 0.01), pixels.mean(dim=(1, 2, 3))], dim=1)

    table = evaluate(of_function(corner, 2), data, rows, Accelerator(cpu=True), {})
    pairs = (17 * 16 + 272 * 271) / (289 * 288)
    np.testing.assert_allclose(shifts.consistency(table), [100 * pairs, 100])
    table = evaluate(of_function(average, 2), data, rows, Accelerator(cpu=True), {})
    np.testing.assert_allclose(shifts.consistency(table), [100, 100])


def test_the_resolutions_are_those_of_the_table(pixels):
    rows = {row.name: row for row in resolution.resolution_rows()}
    assert len(rows) == 1 + 3 * len(resolution.SIDES)
    table = {row.name: row for row in ROWS}
    for name, same in {
        "bilinear 16/32": "Resize (0.5 Scale)",
        "bilinear 8/32": "Resize x0.25 - Bilinear",
        "bicubic 8/32": "Resize x0.25 - Bicubic",
        "nearest 16/32": "Decimate (x2 Factor)",
    }.items():
        assert torch.equal(rows[name].apply(pixels, None), table[same].apply(pixels, None)), name


@pytest.mark.parametrize("study", ["fourier", "resolution", "shifts"])
def test_a_study_of_rows_leaves_its_table_and_says_what_it_found(tiny_folder, tmp_path, monkeypatch, capsys, study):
    names = {"fourier": "fourier_rows", "resolution": "resolution_rows", "shifts": "shift_rows"}
    module = {"fourier": fourier, "resolution": resolution, "shifts": shifts}[study]
    place = f"nula.evaluation.studies.{study}.{names[study]}"
    every = getattr(module, names[study])()
    if study == "resolution":
        monkeypatch.setattr(place, lambda: every[:3])
    arguments = ["--model", str(tiny_folder), "--dataset", str(SAMPLE), "--output", str(tmp_path), "--cpu"]
    monkeypatch.setattr(sys, "argv", ["nula", "evaluate", study, *arguments, "--images", "4"])
    main()
    table = Table.load(tmp_path / study)
    assert table.rows == tuple(row.name for row in (every[:3] if study == "resolution" else every))
    said = {"fourier": "mean error over all waves", "resolution": "nearest 6/32", "shifts": "get the same answer in"}
    assert said[study] in capsys.readouterr().out
