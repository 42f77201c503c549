"""What the result files say about the claims of the published model cards: a figure, its interval, a verdict."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nula.configuration_nula import CIFAR10_LABELS
from nula.evaluation.accuracy import Table
from nula.evaluation.monte_carlo import correct_draws, gap
from nula.evaluation.statistics import flips, mcnemar_p, mean_interval
from nula.evaluation.studies import CLEAN, NOISE

HOLDS, FAILS, UNCLEAR, UNMEASURED = "holds", "does not hold", "too noisy to say", "not measured"
FLAT = 0.1  # of noise's change of loss: what a structured operator's may be at most to be called flat
UNMOVED = 1.0  # points of clean accuracy
HYPHEN = re.compile(r"(?<!\w)-(?=\d)")  # of a negative number; the tables beside have a minus sign


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`claim` is of the published cards; `evidence` says what was measured here, with 95 % intervals."""

    claim: str
    evidence: str
    verdict: str


Evidence = tuple[str, str]  # evidence and verdict of a Finding
CLAIMS: dict[str, Callable[[Path, Path], Evidence]] = {}  # in the published cards' order


def findings(v0: Path, v1: Path) -> list[Finding]:
    """Of the results of v0 and v1, folders as `python -m nula.evaluation` leaves them.

    A claim whose study has left no result there is "not measured".

    Raises:
        ValueError: the two were not measured on the same images, rows and seeds.
    """
    found = []
    for claim, measure in CLAIMS.items():
        try:
            evidence, verdict = measure(v0, v1)
        except FileNotFoundError:
            evidence, verdict = "", UNMEASURED
        found.append(Finding(claim=claim, evidence=HYPHEN.sub("−", evidence), verdict=verdict))
    return found


def of_claim(text: str) -> Callable[[Callable[[Path, Path], Evidence]], Callable[[Path, Path], Evidence]]:
    """Decorator of the function that measures this claim."""

    def register(measure: Callable[[Path, Path], Evidence]) -> Callable[[Path, Path], Evidence]:
        CLAIMS[text] = measure
        return measure

    return register


def paired_tables(v0: Path, v1: Path) -> tuple[Table, Table]:
    """Two stored tables of the same rows, seeds and images."""
    first, second = Table.load(v0), Table.load(v1)
    if (first.rows, first.seeds) != (second.rows, second.seeds) or not np.array_equal(first.labels, second.labels):
        raise ValueError(f"{v0} and {v1} are not of the same rows, seeds and images.")
    return first, second


def paired_json(v0: Path, v1: Path, name: str) -> tuple[dict, dict]:
    """Two stored studies of the same images."""
    first, second = (json.loads((folder / name).read_text()) for folder in (v0, v1))
    if first["provenance"]["dataset"]["sha256"] != second["provenance"]["dataset"]["sha256"]:
        raise ValueError(f"{v0 / name} and {v1 / name} are not of the same images.")
    return first, second


@of_claim("v1 gives more correct answers than v0 under the same Gaussian noise; the distributions do not overlap")
def noise_distributions(v0: Path, v1: Path) -> Evidence:
    first, second = (100 * correct_draws(table).mean(axis=1) for table in paired_tables(v0 / "noise", v1 / "noise"))
    evidence = (
        f"{len(first)} realisations at σ = 0.05: v0 {first.min():.2f} to {first.max():.2f} %, "
        f"v1 {second.min():.2f} to {second.max():.2f} %"
    )
    return evidence, HOLDS if first.max() < second.min() else FAILS


@of_claim("the gap Δ(k) converges to a positive value (published: +3.0 points, standard deviation 0.14)")
def noise_gap(v0: Path, v1: Path) -> Evidence:
    first, second = (correct_draws(table) for table in paired_tables(v0 / "noise", v1 / "noise"))
    result = gap(first, second)
    over_images = mean_interval(100 * (second.mean(axis=0) - first.mean(axis=0)))
    settled = "never" if result.settled is None else f"from k = {result.settled:,} images on"
    evidence = (
        f"Δ = {result.mean:+.2f} points ({result.interval[0]:+.2f} to {result.interval[1]:+.2f} over noise, "
        f"{over_images[1]:+.2f} to {over_images[2]:+.2f} over images), standard deviation over noise {result.std:.2f}; "
        f"every realisation is within {result.tolerance} points of Δ {settled}"
    )
    return evidence, _all([_positive(*result.interval), _positive(*over_images[1:])])


@of_claim("lower first-order sensitivity: the Jacobian's Frobenius norm is lower for v1")
def jacobian(v0: Path, v1: Path) -> Evidence:
    first, second = (study["norms"] for study in paired_json(v0, v1, "sensitivity.json"))
    # Of logarithms, so that halving and doubling weigh the same and neither model is favoured.
    ratios = {sigma: np.exp(mean_interval(np.log(second[sigma]) - np.log(first[sigma]))) for sigma in first}
    shown = [f"σ = {sigma}: × {middle:.2f} ({low:.2f} to {high:.2f})" for sigma, (middle, low, high) in ratios.items()]
    count = len(next(iter(first.values())))
    evidence = f"v1's norm over v0's, geometric mean over {count:,} images: {'; '.join(shown)}"
    return evidence, _all([_positive(1 - high, 1 - low) for _, low, high in ratios.values()])


@of_claim("calmer curvature: the dominant Hessian eigenvalue is lower for v1, above all at higher noise")
def curvature(v0: Path, v1: Path) -> Evidence:
    first, second = (study["eigenvalues"] for study in paired_json(v0, v1, "curvature.json"))
    shown, verdicts = [], []
    for sigma in first:
        for method, field in (("power_iteration", "eigenvalue"), ("lanczos", "largest")):
            a, b = ([part[method][field] for part in parts[sigma]] for parts in (first, second))
            title = f"σ = {sigma}, {method.replace('_', ' ')}"
            if None in a or None in b:
                shown.append(f"{title}: not converged")
                verdicts.append(UNCLEAR)
                continue
            _, low, high = mean_interval(np.subtract(b, a))
            shown.append(f"{title}: {np.mean(a):.3g} and {np.mean(b):.3g} ({low:+.3g} to {high:+.3g})")
            verdicts.append(_positive(-high, -low))
    evidence = f"v0 and v1, means over {len(a)} subsets (difference): {'; '.join(shown)}"
    return evidence, _all(verdicts)


@of_claim("Δθ is flat for the structured operators and effective for noise")
def basin(v0: Path, v1: Path) -> Evidence:
    shapes = json.loads((v1 / "basin.json").read_text())["shapes"]
    changes, shown = {}, []
    for name, shape in shapes.items():
        changes[name] = mean_interval(np.subtract(shape["loss"]["end"], shape["loss"]["start"]))
        parts = {"change": changes[name], "slope": mean_interval(shape["slopes"])}
        parts["curvature"] = mean_interval(shape["curvatures"])
        values = (f"{part} {mean:+.3f} ({low:+.3f} to {high:+.3f})" for part, (mean, low, high) in parts.items())
        shown.append(f"{name}: {', '.join(values)}")
    bound = FLAT * abs(changes[NOISE][0])
    flat = [_within(*changes[name][1:], bound) for name in changes if name not in (CLEAN, NOISE)]
    evidence = (
        f"loss on test images from θ(v0) to θ(v0) + Δθ: {'; '.join(shown)}; flat means a change of at most "
        f"{FLAT:.0%} of noise's"
    )
    return evidence, _all([_positive(-changes[NOISE][2], -changes[NOISE][1]), *flat])


@of_claim("v1 stays in v0's basin")
def path(v0: Path, v1: Path) -> Evidence:
    points = json.loads((v1 / "basin.json").read_text())["path"]
    between = [point["interpolated"][CLEAN] for point in points if 0 <= point["alpha"] <= 1]
    barrier = min(between[0], between[-1]) - min(between)
    evidence = f"clean accuracy on the straight line between them falls {barrier:.2f} points below its lower end"
    return evidence, HOLDS if barrier <= UNMOVED else FAILS


@of_claim("a trade-off: clean accuracy hardly moves, yet some inputs flip")
def trade_off(v0: Path, v1: Path) -> Evidence:
    first, second = paired_tables(v0, v1)
    row = first.rows.index("Clean (CIFAR-10 Test)")
    answers, answers_too = first.predictions[row], second.predictions[row]
    right, right_too = answers == first.labels, answers_too == first.labels
    mean, low, high = mean_interval(100 * (right_too.astype(float) - right))
    evidence = (
        f"clean accuracy {mean:+.2f} points ({low:+.2f} to {high:+.2f}, McNemar's p = "
        f"{mcnemar_p(right, right_too):.2g}); {len(flips(answers, answers_too)):,} of {len(right):,} answers differ"
    )
    return evidence, _within(low, high, UNMOVED) if (answers != answers_too).any() else FAILS


@of_claim("v1 drifts to coarse, low-texture classes such as truck")
def drift(v0: Path, v1: Path) -> Evidence:
    first, second = paired_tables(v0, v1)
    row = first.rows.index("Clean (CIFAR-10 Test)")
    truck = CIFAR10_LABELS.index("truck")
    wrong = [
        (table.predictions[row] == truck) & (table.labels != truck) for table in (first, second)
    ]  # images of another class that are called a truck
    mean, low, high = mean_interval(100 * (wrong[1].astype(float) - wrong[0]))
    evidence = (
        f"images wrongly called a truck: {wrong[0].sum()} by v0, {wrong[1].sum()} by v1 "
        f"({mean:+.3f} points, {low:+.3f} to {high:+.3f})"
    )
    return evidence, _positive(low, high)


def _positive(low: float, high: float) -> str:
    """The claim that a quantity with this interval is positive."""
    return HOLDS if low > 0 else FAILS if high < 0 else UNCLEAR


def _within(low: float, high: float, bound: float) -> str:
    """The claim that a quantity with this interval lies in [-bound, bound]."""
    return HOLDS if -bound <= low and high <= bound else FAILS if low > bound or high < -bound else UNCLEAR


def _all(verdicts: list[str]) -> str:
    return FAILS if FAILS in verdicts else UNCLEAR if UNCLEAR in verdicts else HOLDS
