"""What the result files say about the claims of the published model cards: a figure, its interval, a verdict."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nula.evaluation.monte_carlo import correct_draws, gap
from nula.evaluation.studies.basin import ALPHAS, INTERPOLATED, NOISE, UNPERTURBED, path_row
from nula.records.release import Results
from nula.records.statistics import flips, mcnemar_p, mean_interval, variance_ratio_interval
from nula.records.table import CLEAN, Table, origin_of

HOLDS, FAILS, UNCLEAR, UNMEASURED = "holds", "does not hold", "too noisy to say", "not measured"
FLAT = 0.1  # of noise's change of loss: what a structured operator's may be at most to be called flat
UNMOVED = 1.0  # points of clean accuracy
FLATTENED = ("Contrast (0.80)", "Grayscale (Full Mix)")  # rows of the table with less in them
HYPHEN = re.compile(r"(?<!\w)-(?=\d)")  # of a negative number; the tables beside have a minus sign


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`claim` is of the published cards; `evidence` says what was measured here, with 95 % intervals."""

    claim: str
    evidence: str
    verdict: str


Evidence = tuple[str, str]  # evidence and verdict of a Finding
CLAIMS: dict[str, Callable[[Results, Results], Evidence]] = {}  # in the published cards' order


class NotMeasured(Exception):
    """A study has left no result."""


def findings(base: Results, tuned: Results) -> list[Finding]:
    """Say what the results of a base and of the model fine-tuned from it tell of each claim.

    A claim whose study has left no result there is "not measured".

    Raises:
        ValueError: one of them holds no table, or the two were not measured on the same images, rows and seeds, by the
            same definitions.
    """
    for results in (base, tuned):
        if results.table() is None:
            raise ValueError(
                f"{results.folder} holds no table; give a folder that `table` wrote, such as releases/v1/results."
            )
    found = []
    for claim, measure in CLAIMS.items():
        try:
            evidence, verdict = measure(base, tuned)
        except NotMeasured:
            evidence, verdict = "", UNMEASURED
        found.append(Finding(claim=claim, evidence=HYPHEN.sub("−", evidence), verdict=verdict))
    return found


def of_claim(text: str) -> Callable[[Callable[[Results, Results], Evidence]], Callable[[Results, Results], Evidence]]:
    """Decorator of the function that measures this claim."""

    def register(measure: Callable[[Results, Results], Evidence]) -> Callable[[Results, Results], Evidence]:
        CLAIMS[text] = measure
        return measure

    return register


def stored_table(results: Results, study: str = "") -> Table:
    """Return the table of a study; NotMeasured where there is none."""
    table = results.table(study)
    if table is None:
        raise NotMeasured
    return table


def stored_record(results: Results, study: str) -> dict[str, Any]:
    """Return what `study`.json holds; NotMeasured where there is none."""
    record = results.record(study)
    if record is None:
        raise NotMeasured
    return record


def paired_tables(v0: Results, v1: Results, study: str = "") -> tuple[Table, Table]:
    """Return two stored tables of the same rows, seeds and images."""
    first, second = stored_table(v0, study), stored_table(v1, study)
    if not first.is_comparable(second):
        raise ValueError(
            f"{v0.folder / study} and {v1.folder / study} are not of the same rows, seeds and images, by the same "
            "definitions."
        )
    return first, second


def paired_records(v0: Results, v1: Results, study: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two stored studies of the same images."""
    first, second = stored_record(v0, study), stored_record(v1, study)
    if origin_of(first["provenance"]) != origin_of(second["provenance"]):
        files = [results.folder / f"{study}.json" for results in (v0, v1)]
        raise ValueError(f"{files[0]} and {files[1]} are not of the same images, by the same definitions.")
    return first, second


def check_line(v0: Results, v1: Results, provenance: dict[str, Any]) -> None:
    """ValueError unless a study of the line between two models is of those whose tables lie in `v0` and `v1`."""
    for results, field in ((v0, "start_weights_sha256"), (v1, "weights_sha256")):
        if stored_table(results).provenance["weights_sha256"] != provenance[field]:
            raise ValueError(
                f"the study of the line in {v1.folder} is of other weights than the table in {results.folder}."
            )


@of_claim("v1 gives more correct answers than v0 under the same Gaussian noise; the distributions do not overlap")
def noise_distributions(v0: Results, v1: Results) -> Evidence:
    first, second = (100 * correct_draws(table).mean(axis=1) for table in paired_tables(v0, v1, "noise"))
    means = ["{:.2f} % on average ({:.2f} to {:.2f})".format(*mean_interval(draws)) for draws in (first, second)]
    evidence = (
        f"{len(first)} realisations at σ = 0.05: v0 {means[0]}, from {first.min():.2f} to {first.max():.2f} %; "
        f"v1 {means[1]}, from {second.min():.2f} to {second.max():.2f} %"
    )
    return evidence, HOLDS if first.max() < second.min() else FAILS


@of_claim("the gap Δ(k) converges to a positive value (published: +3.0 points, standard deviation 0.14), and E|Δ| > 0")
def noise_gap(v0: Results, v1: Results) -> Evidence:
    first, second = (correct_draws(table) for table in paired_tables(v0, v1, "noise"))
    result = gap(first, second)
    over_images = mean_interval(100 * (second.mean(axis=0) - first.mean(axis=0)))
    settled = (
        f"not every realisation comes to lie within {result.tolerance} points of Δ on {first.shape[1]:,} images"
        if result.settled is None
        else f"every realisation is within {result.tolerance} points of Δ from k = {result.settled:,} images on"
    )
    sizes = np.abs(result.running[:, -1])
    evidence = (
        f"Δ = {result.mean:+.2f} points ({result.interval[0]:+.2f} to {result.interval[1]:+.2f} over noise, "
        f"{over_images[1]:+.2f} to {over_images[2]:+.2f} over images), E|Δ| = {sizes.mean():.2f}, standard deviation "
        f"over noise {result.std:.2f}; {settled}"
    )
    verdicts = [_positive(*result.interval), _positive(*over_images[1:])]
    return evidence, _all([*verdicts, UNCLEAR if result.settled is None else HOLDS])


@of_claim("lower first-order sensitivity: the Jacobian's Frobenius norm is lower for v1")
def jacobian(v0: Results, v1: Results) -> Evidence:
    first, second = (study["norms"] for study in paired_records(v0, v1, "sensitivity"))
    # Of logarithms, so that halving and doubling weigh the same and neither model is favoured.
    ratios = {sigma: np.exp(mean_interval(np.log(second[sigma]) - np.log(first[sigma]))) for sigma in first}
    shown = [f"σ = {sigma}: × {middle:.2f} ({low:.2f} to {high:.2f})" for sigma, (middle, low, high) in ratios.items()]
    count = len(next(iter(first.values())))
    evidence = f"v1's norm over v0's, geometric mean over {count:,} images: {'; '.join(shown)}"
    return evidence, _all([_positive(1 - high, 1 - low) for _, low, high in ratios.values()])


Sizes = dict[str, dict[str, tuple[np.ndarray, np.ndarray] | None]]


def dominant_sizes(v0: Results, v1: Results) -> Sizes:
    """By σ and method, |λ| of the dominant eigenvalue for v0 and v1, one a subset; None where one did not converge."""
    first, second = (study["eigenvalues"] for study in paired_records(v0, v1, "curvature"))

    def sizes(parts: list[dict[str, Any]], method: str) -> np.ndarray | None:
        if method == "power iteration":
            found = [part["power_iteration"] for part in parts]
            return np.abs([one["eigenvalue"] for one in found]) if all(one["converged"] for one in found) else None
        ends = [tuple(part["lanczos"].values()) for part in parts]
        return None if (None, None) in ends else np.abs(ends).max(axis=1)

    result: Sizes = {}
    for sigma in first:
        if len(first[sigma]) != len(second[sigma]):
            raise ValueError(f"the spectra in {v0.folder} and {v1.folder} are of different numbers of subsets.")
        pairs = {
            method: (sizes(first[sigma], method), sizes(second[sigma], method))
            for method in ("power iteration", "Lanczos")
        }
        result[sigma] = {method: None if a is None or b is None else (a, b) for method, (a, b) in pairs.items()}
    return result


@of_claim("calmer curvature: the dominant Hessian eigenvalue is lower for v1")
def curvature(v0: Results, v1: Results) -> Evidence:
    shown, verdicts = [], []
    for sigma, methods in dominant_sizes(v0, v1).items():
        for method, pair in methods.items():
            title = f"σ = {sigma}, {method}"
            if pair is None:
                shown.append(f"{title}: not converged")
                verdicts.append(UNCLEAR)
                continue
            a, b = pair
            _, low, high = mean_interval(b - a)
            shown.append(f"{title}: {a.mean():.3g} and {b.mean():.3g} ({low:+.3g} to {high:+.3g})")
            verdicts.append(_positive(-high, -low))
    return f"|λ| of v0 and v1, means over subsets (difference): {'; '.join(shown)}", _all(verdicts)


@of_claim("its estimate is steadier for v1")
def steadiness(v0: Results, v1: Results) -> Evidence:
    shown, verdicts = [], []
    for sigma, methods in dominant_sizes(v0, v1).items():
        if methods["Lanczos"] is None:
            shown.append(f"σ = {sigma}: not converged")
            verdicts.append(UNCLEAR)
            continue
        a, b = methods["Lanczos"]
        low, high = np.sqrt(variance_ratio_interval(b, a))
        shown.append(f"σ = {sigma}: {a.std(ddof=1):.3g} and {b.std(ddof=1):.3g} (ratio {low:.2f} to {high:.2f})")
        verdicts.append(_positive(1 - high, 1 - low))
    return f"standard deviation over {len(a)} subsets by Lanczos, v0 and v1: {'; '.join(shown)}", _all(verdicts)


@of_claim("above all at higher noise")
def curvature_with_noise(v0: Results, v1: Results) -> Evidence:
    found = dominant_sizes(v0, v1)
    least, most = (found[sigma]["Lanczos"] for sigma in (min(found, key=float), max(found, key=float)))
    if least is None or most is None:
        return "not converged", UNCLEAR
    (a, b), (noisy_a, noisy_b) = least, most
    mean, low, high = mean_interval(np.log(noisy_a / noisy_b) - np.log(a / b))
    evidence = (
        f"|λ| of v0 is {np.exp(np.log(a / b).mean()):.2f} times v1's at σ = {min(found, key=float)} and "
        f"{np.exp(np.log(noisy_a / noisy_b).mean()):.2f} times at σ = {max(found, key=float)}: × {np.exp(mean):.2f} "
        f"({np.exp(low):.2f} to {np.exp(high):.2f}; Lanczos)"
    )
    return evidence, _positive(low, high)


@of_claim("Δθ is flat for the structured operators and effective for noise")
def basin(v0: Results, v1: Results) -> Evidence:
    record = stored_record(v1, "basin")
    check_line(v0, v1, record["provenance"])
    changes, shown = {}, []
    for name, shape in record["shapes"].items():
        changes[name] = mean_interval(np.subtract(shape["loss"]["end"], shape["loss"]["start"]))
        parts = {"change": changes[name], "slope": mean_interval(shape["slopes"])}
        parts["curvature"] = mean_interval(shape["curvatures"])
        values = (f"{part} {mean:+.3f} ({low:+.3f} to {high:+.3f})" for part, (mean, low, high) in parts.items())
        shown.append(f"{name}: {', '.join(values)}")
    bound = FLAT * abs(changes[NOISE][0])
    flat = [_within(*changes[name][1:], bound) for name in changes if name not in (UNPERTURBED, NOISE)]
    evidence = (
        f"loss on test images from θ(v0) to θ(v0) + Δθ, with v0's BatchNorm statistics throughout: {'; '.join(shown)}; "
        f"flat means a change of at most {FLAT:.0%} of noise's"
    )
    return evidence, _all([_positive(-changes[NOISE][2], -changes[NOISE][1]), *flat])


@of_claim("v1 stays in v0's basin")
def path(v0: Results, v1: Results) -> Evidence:
    stored = stored_table(v1, "basin")
    check_line(v0, v1, stored.provenance)
    right = {alpha: stored.row(path_row(UNPERTURBED, INTERPOLATED, alpha)).right for alpha in ALPHAS}
    end = min((0.0, 1.0), key=lambda alpha: right[alpha].mean())
    lowest = min((alpha for alpha in ALPHAS if 0 < alpha < 1), key=lambda alpha: right[alpha].mean())
    mean, low, high = mean_interval(100.0 * right[lowest] - 100.0 * right[end])
    evidence = (
        f"the lowest clean accuracy on the straight line between them, at α = {lowest}, less that of its lower end: "
        f"{mean:+.2f} points ({low:+.2f} to {high:+.2f}); a barrier would be below −{UNMOVED:g}"
    )
    return evidence, HOLDS if low >= -UNMOVED else FAILS if high < -UNMOVED else UNCLEAR


@of_claim("a trade-off: clean accuracy hardly moves, yet some inputs flip")
def trade_off(v0: Results, v1: Results) -> Evidence:
    first, second = paired_tables(v0, v1)
    before, after = first.row(CLEAN), second.row(CLEAN)
    right, right_too = before.right, after.right
    mean, low, high = mean_interval(100 * (right_too.astype(float) - right))
    evidence = (
        f"clean accuracy {mean:+.2f} points ({low:+.2f} to {high:+.2f}, McNemar's p = "
        f"{mcnemar_p(right, right_too):.2g}), where hardly means up to {UNMOVED:g}; "
        f"{len(flips(before.predictions, after.predictions)):,} of {len(right):,} answers differ"
    )
    return evidence, _within(low, high, UNMOVED) if (before.predictions != after.predictions).any() else FAILS


@of_claim("v0 recovers weak evidence better from stylised or flattened inputs")
def weak_evidence(v0: Results, v1: Results) -> Evidence:
    first, second = paired_tables(v0, v1)
    shown, verdicts = [], []
    for name in FLATTENED:
        right, right_too = (table.row(name).right for table in (first, second))
        mean, low, high = mean_interval(100.0 * right - 100.0 * right_too)
        shown.append(f"{name} {mean:+.2f} points ({low:+.2f} to {high:+.2f})")
        verdicts.append(_positive(low, high))
    return f"the published card shows examples; here v0's accuracy less v1's: {', '.join(shown)}", _all(verdicts)


@of_claim("v1 drifts to coarse, low-texture classes such as truck")
def drift(v0: Results, v1: Results) -> Evidence:
    first, second = paired_tables(v0, v1)
    if "truck" not in first.classes:
        raise NotMeasured
    truck = first.classes.index("truck")
    wrong = [
        100.0 * ((table.predictions == truck) & (table.labels != truck)).mean(axis=0) for table in (first, second)
    ]  # for each image, the share of the rows under which it is called a truck and is none
    mean, low, high = mean_interval(wrong[1] - wrong[0])
    evidence = (
        f"images of the {len(first.rows)} rows wrongly called a truck: {wrong[0].mean():.2f} % by v0, "
        f"{wrong[1].mean():.2f} % by v1 ({mean:+.3f} points, {low:+.3f} to {high:+.3f})"
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
