"""Accuracy over many realisations of Gaussian noise, and the gap between two models under the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nula.evaluation.measuring import Measurement
from nula.perturbations.appearance import gaussian_noise
from nula.records.statistics import mean_interval
from nula.records.table import Table

SIGMA = 0.05  # of the published study, in pixel values of [0, 1]
SWEEP = (0.02, 0.035, 0.05, 0.075, 0.1, 0.15)


def noise_rows(sigma: float = SIGMA, draws: int = 20, sweep: Sequence[float] = SWEEP) -> list[Measurement]:
    """`draws` realisations at `sigma`, seeds 0, 1, …, then the first of them at each strength of `sweep`."""

    def row(strength: float, seed: int) -> Measurement:
        def apply(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return gaussian_noise(pixels, strength, generator)

        return Measurement(name=row_name(strength), apply=apply, seed=seed)

    return [row(sigma, seed) for seed in range(draws)] + [row(strength, 0) for strength in sweep if strength != sigma]


def row_name(sigma: float) -> str:
    return f"Gaussian Noise σ = {sigma}"


def correct_draws(table: Table, sigma: float = SIGMA) -> np.ndarray:
    """Return which images were called right in each realisation at `sigma`: (D, N) bool, by ascending seed.

    Raises:
        ValueError: the table has no realisation at `sigma`.
    """
    if row_name(sigma) not in table.rows:
        raise ValueError(f"no realisation at σ = {sigma}; the table has {sorted(set(table.rows))}.")
    return np.stack([row.right for row in table.realisations(row_name(sigma))])


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much more accurate b is than a, in points, over realisations of the noise.

    `running` (D, N): over the first k images of each realisation. `mean`, `std` (n − 1) and the 95 % `interval` of the
    mean (Student's t) are of the D gaps over all images. They say how much the noise matters, not which images were
    drawn: that is McNemar's and Wilson's. `settled` is the smallest k from which on every realisation's running gap
    stays within `tolerance` points of `mean`, None where one ends outside.
    """

    running: np.ndarray
    mean: float
    std: float
    interval: tuple[float, float]
    tolerance: float
    settled: int | None


def gap(correct_a: np.ndarray, correct_b: np.ndarray, tolerance: float = 0.2) -> Gap:
    """Of two models' `correct_draws`, (D, N) each, under the same realisations; at least two of them."""
    if correct_a.shape != correct_b.shape or len(correct_a) < 2:
        raise ValueError(
            f"a gap needs the same two or more realisations of both, got {correct_a.shape} and {correct_b.shape}."
        )
    count = correct_a.shape[1]
    differences = correct_b.astype(np.int64) - correct_a
    running = 100 * differences.cumsum(axis=1) / np.arange(1, count + 1)
    last = running[:, -1]
    mean, low, high = mean_interval(last)
    outside = np.flatnonzero((np.abs(running - mean) > tolerance).any(axis=0))
    settled = int(outside[-1]) + 2 if len(outside) else 1  # k counts from 1, and the image after the last outside
    return Gap(
        running=running,
        mean=mean,
        std=float(last.std(ddof=1)),
        interval=(low, high),
        tolerance=tolerance,
        settled=settled if settled <= count else None,
    )
