"""What the result files say about the claims of the published model cards: a figure, its interval, a verdict."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nula.evaluation.accuracy import Table
from nula.evaluation.monte_carlo import correct_draws, gap
from nula.evaluation.statistics import flips, mcnemar_p, mean_interval

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "too noisy to say"
CLEAN, NOISE = "clean", "Gaussian noise σ = 0.05"  # as the study of the basin calls them
FLAT = 0.1  # of noise's change of loss: what a structured operator's may be at most to be called flat


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`claim` is of the published cards; `evidence` says what was measured here, with 95 % intervals."""

    claim: str
    evidence: str
    verdict: str


def findings(v0: Path, v1: Path) -> list[Finding]:
    """Of the results of v0 and v1, folders as `python -m nula.evaluation` leaves them."""
    return [finding(v0, v1) for finding in CLAIMS]


def noise_distributions(v0: Path, v1: Path) -> Finding:
    first, second = (100 * correct_draws(Table.load(folder / "noise")).mean(axis=1) for folder in (v0, v1))
    apart = first.max() < second.min()
    return Finding(
        claim="v1 gives more correct answers than v0 under the same Gaussian noise; the distributions do not overlap",
        evidence=f"{len(first)} realisations at σ = 0.05: v0 {first.min():.2f} to {first.max():.2f} %, "
        f"v1 {second.min():.2f} to {second.max():.2f} %",
        verdict=HOLDS if apart else FAILS,
    )


def noise_gap(v0: Path, v1: Path) -> Finding:
    result = gap(*(correct_draws(Table.load(folder / "noise")) for folder in (v0, v1)))
    low, high = result.interval
    return Finding(
        claim="the gap Δ(k) converges to a positive value (published: +3.0 points, standard deviation 0.14)",
        evidence=f"Δ = {result.mean:+.2f} points ({low:+.2f} to {high:+.2f}), standard deviation {result.std:.2f}; "
        f"every realisation stays within {result.tolerance} points of its last value from k = {result.settled:,} images on",
        verdict=_verdict(low, high),
    )


def jacobian(v0: Path, v1: Path) -> Finding:
    first, second = (json.loads((folder / "sensitivity.json").read_text())["norms"] for folder in (v0, v1))
    intervals = {sigma: mean_interval(np.array(second[sigma]) / np.array(first[sigma])) for sigma in first}
    shown = "; ".join(
        f"σ = {sigma}: × {mean:.2f} ({low:.2f} to {high:.2f})" for sigma, (mean, low, high) in intervals.items()
    )
    return Finding(
        claim="lower first-order sensitivity: the Jacobian's Frobenius norm is lower for v1",
        evidence=f"v1's norm over v0's, mean over {len(first['0.0']):,} images: {shown}",
        verdict=_all([_verdict(1 - high, 1 - low) for _, low, high in intervals.values()]),
    )


def curvature(v0: Path, v1: Path) -> Finding:
    first, second = (json.loads((folder / "curvature.json").read_text())["eigenvalues"] for folder in (v0, v1))
    shown, verdicts = [], []
    for sigma in first:
        a, b = (np.array([part["lanczos"]["largest"] for part in parts[sigma]]) for parts in (first, second))
        mean, low, high = mean_interval(b - a)
        shown.append(f"σ = {sigma}: {a.mean():.3g} and {b.mean():.3g} ({mean:+.3g}, {low:+.3g} to {high:+.3g})")
        verdicts.append(_verdict(-high, -low))
    return Finding(
        claim="calmer curvature: the dominant Hessian eigenvalue is lower for v1, above all at higher noise",
        evidence=f"largest eigenvalue of v0 and of v1, mean over {len(a)} subsets (difference): {'; '.join(shown)}",
        verdict=_all(verdicts),
    )


def basin(v0: Path, v1: Path) -> Finding:
    shapes = json.loads((v1 / "basin.json").read_text())["shapes"]
    changes = {
        name: mean_interval(np.array(shape["loss"]["end"]) - np.array(shape["loss"]["start"]))
        for name, shape in shapes.items()
    }
    slopes = {name: mean_interval(shape["start"]["slopes"])[0] for name, shape in shapes.items()}
    curvatures = {name: mean_interval(shape["start"]["curvatures"])[0] for name, shape in shapes.items()}
    shown = "; ".join(
        f"{name}: change of the loss {mean:+.3f} ({low:+.3f} to {high:+.3f}), slope {slopes[name]:+.3f}, "
        f"curvature {curvatures[name]:+.3f}"
        for name, (mean, low, high) in changes.items()
    )
    bound = FLAT * abs(changes[NOISE][0])
    flat = [
        HOLDS if max(abs(low), abs(high)) <= bound else FAILS if min(abs(low), abs(high)) > bound else UNCLEAR
        for name, (_, low, high) in changes.items()
        if name not in (CLEAN, NOISE)
    ]
    return Finding(
        claim="v1 stays in v0's basin: Δθ is flat for the structured operators and effective for noise",
        evidence=f"from v0 to v1 along Δθ, on test images: {shown}; flat means at most {FLAT:.0%} of noise's change",
        verdict=_all([_verdict(-changes[NOISE][2], -changes[NOISE][1]), *flat]),
    )


def trade_off(v0: Path, v1: Path) -> Finding:
    first, second = (Table.load(folder) for folder in (v0, v1))
    right, right_too = (table.predictions[0] == table.labels for table in (first, second))
    mean, low, high = mean_interval(100 * (right_too.astype(float) - right))
    flipped = len(flips(first.predictions[0], second.predictions[0]))
    return Finding(
        claim="a trade-off: clean accuracy hardly moves, yet some inputs flip",
        evidence=f"clean accuracy {mean:+.2f} points ({low:+.2f} to {high:+.2f}, McNemar's p = "
        f"{mcnemar_p(right, right_too):.2g}); {flipped:,} of {len(right):,} answers differ",
        verdict=HOLDS
        if max(abs(low), abs(high)) < 1 and flipped
        else FAILS
        if min(abs(low), abs(high)) > 1
        else UNCLEAR,
    )


CLAIMS: tuple[Callable[[Path, Path], Finding], ...] = (
    noise_distributions,
    noise_gap,
    jacobian,
    curvature,
    basin,
    trade_off,
)


def _verdict(low: float, high: float) -> str:
    """Of the claim that a quantity with this interval is positive."""
    return HOLDS if low > 0 else FAILS if high < 0 else UNCLEAR


def _all(verdicts: list[str]) -> str:
    return FAILS if FAILS in verdicts else UNCLEAR if UNCLEAR in verdicts else HOLDS
