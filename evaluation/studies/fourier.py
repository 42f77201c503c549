"""Accuracy under each wave of the Fourier basis, and with the frequencies above or below a cutoff taken away."""

import argparse

import numpy as np
import torch

from nula.evaluation.measuring import Measurement
from nula.evaluation.session import Session
from nula.evaluation.studies.study import Study, add_images
from nula.perturbations.spectrum import add_wave, high_pass, low_pass
from nula.records.table import Table

GRID = 32  # frequencies along each axis, from -0.5 to below 0.5 cycles per pixel; all there are of 32x32 pixels
AMPLITUDE = 4 / 32  # of D. Yin et al. (2019) for CIFAR-10: an L2 norm of 4 in each channel of 32x32 pixels
CUTOFFS = tuple(cycles / GRID for cycles in range(1, GRID // 2))  # cycles per pixel


def wave_name(down: int, right: int) -> str:
    """Return the name of the row of a wave, by its frequencies in units of 1/GRID cycles per pixel."""
    return f"wave {down} down {right} right"


def half_plane() -> list[tuple[int, int]]:
    """Return one of each pair of opposite (down, right), which have one frequency between them; not the constant."""
    places = range(-GRID // 2, GRID // 2)
    found: dict[frozenset[tuple[int, int]], tuple[int, int]] = {}
    for down in places:
        for right in places:
            opposite = ((-down + GRID // 2) % GRID - GRID // 2, (-right + GRID // 2) % GRID - GRID // 2)
            found.setdefault(frozenset([(down, right), opposite]), (down, right))
    return [frequency for frequency in found.values() if frequency != (0, 0)]


def fourier_rows() -> list[Measurement]:
    """Return the rows: clean, every wave of the half plane, every low-pass and every high-pass."""

    def wave(down: int, right: int) -> Measurement:
        def apply(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return add_wave(pixels, down / GRID, right / GRID, AMPLITUDE, generator)

        return Measurement(name=wave_name(down, right), apply=apply)

    def low(cutoff: float) -> Measurement:
        return Measurement(name=f"low-pass {cutoff:.3f}", apply=lambda pixels, generator: low_pass(pixels, cutoff))

    def high(cutoff: float) -> Measurement:
        return Measurement(name=f"high-pass {cutoff:.3f}", apply=lambda pixels, generator: high_pass(pixels, cutoff))

    clean = Measurement(name="clean", apply=lambda pixels, generator: pixels)
    waves = [wave(*frequency) for frequency in half_plane()]
    return [clean, *waves, *(low(cutoff) for cutoff in CUTOFFS), *(high(cutoff) for cutoff in CUTOFFS)]


def heat_map(table: Table) -> np.ndarray:
    """Return the error in percent under each wave, (GRID, GRID), the constant, which is clean, in the middle."""
    accuracy = table.accuracies()
    errors = np.full((GRID, GRID), 100 - accuracy["clean"])
    for down, right in half_plane():
        error = 100 - accuracy[wave_name(down, right)]
        errors[GRID // 2 + down, GRID // 2 + right] = error
        errors[(GRID // 2 - down) % GRID, (GRID // 2 - right) % GRID] = error
    return errors


def _run(session: Session) -> None:
    tables = session.measure(fourier_rows(), "fourier", print_rows=False)
    if session.accelerator.is_main_process:
        for model, table in tables.items():
            errors = heat_map(table)
            worst = np.unravel_index(errors.argmax(), errors.shape)
            down, right = (int(place) - GRID // 2 for place in worst)
            print(f"\n{model}: mean error over all waves {errors.mean():.2f} %; worst {errors.max():.2f} %, under")
            print(f"{down}/{GRID} cycles per pixel down and {right}/{GRID} right")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=500, least=1)


FOURIER = Study(
    name="fourier",
    summary="accuracy under each wave of the Fourier basis, and behind low-passes and high-passes",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
