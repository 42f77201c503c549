"""Verdicts from result files that were made up, so that each verdict can be forced."""

import json
from pathlib import Path

import numpy as np
import pytest

from nula.evaluation import claims as module
from nula.evaluation.claims import FAILS, HOLDS, UNCLEAR, UNMEASURED, findings
from nula.evaluation.monte_carlo import row_name
from nula.evaluation.studies.basin import ALPHAS, CONDITIONS, INTERPOLATED, MEASURED_ANEW, PATH_CONDITIONS, path_row
from nula.perturbations.suite import ROWS
from nula.records.release import Results
from nula.records.table import Table

IMAGES, CLASSES = 400, 10
TRUCK = 9
ORIGIN = {"dataset": {"sha256": "same"}, "definitions_version": 0}


def table(folder: Path, rows: list[tuple[str, int]], accuracy: float, seed: int, weights: str = "") -> None:
    """Predictions that are right with this probability, and else the next class, never a truck."""
    right = np.random.default_rng(seed).random((len(rows), IMAGES)) < accuracy
    save(folder, rows, right, ORIGIN | {"weights_sha256": weights})


def save(folder: Path, rows: list[tuple[str, int]], right: np.ndarray, provenance: dict) -> None:
    labels = (np.arange(IMAGES) % CLASSES).astype(np.uint8)
    wrong = (labels + 1) % (CLASSES - 1)
    names, seeds = zip(*rows)
    Table(
        rows=names,
        seeds=seeds,
        predictions=np.where(right, labels, wrong).astype(np.uint8),
        labels=labels,
        provenance=provenance,
    ).save(folder)


def results(
    folder: Path,
    *,
    clean: float = 0.9,
    noise: float = 0.7,
    norm: float = 2.0,
    eigenvalue: float = 10,
    spread: float = 0.2,
    noisy: float = 3,
    seed: int = 0,
) -> Path:
    """A folder of results like those of the release, of one model. Every realisation of the noise is the same.

    `spread`: of the logarithms of the eigenvalues over subsets; `noisy`: how many times as large they are under noise.
    """
    generator = np.random.default_rng(seed)
    table(folder, [(row.name, 0) for row in ROWS], clean, seed, weights=folder.name)
    draws = [(row_name(0.05), draw) for draw in range(5)] + [(row_name(0.1), 0)]
    right = np.random.default_rng(seed + 1).random(IMAGES) < noise
    save(folder / "noise", draws, np.tile(right, (len(draws), 1)), ORIGIN)
    provenance = {"provenance": ORIGIN}
    norms = {sigma: (norm * generator.lognormal(0, 0.1, 50)).tolist() for sigma in ("0.0", "0.1")}
    (folder / "sensitivity.json").write_text(json.dumps(provenance | {"norms": norms}))
    eigenvalues = {
        sigma: [
            {
                "power_iteration": {"eigenvalue": -value, "converged": True},
                "lanczos": {"smallest": -value, "largest": value / 10},
            }
            for value in size * generator.lognormal(0, spread, 4)
        ]
        for sigma, size in (("0.0", eigenvalue), ("0.1", noisy * eigenvalue))
    }
    (folder / "curvature.json").write_text(json.dumps(provenance | {"eigenvalues": eigenvalues}))
    found = {"labels": [3, None, 5, 1], "bounds": [0.9, 0.4, 0.8, 0.7], "radii": [0.2, 0.0, 0.1, 0.05]}
    certificates = provenance | {"truth": [3, 2, 5, 0], "certificates": {"0.1": found}}
    (folder / "certified.json").write_text(json.dumps(certificates))
    return folder


def line(folder: Path, changes: dict[str, list[float]], clean: dict[float, int], start: str = "v0") -> None:
    """A study of the line with these changes of the loss by operator, one for each of four batches.

    `clean`: how many of the images are right at α, the first ones, where it is not 360.
    """
    shapes = {
        name: {
            "slopes": values,
            "curvatures": [0.0] * len(values),
            "loss": {"start": [1.0] * len(values), "end": (1 + np.array(values)).tolist()},
        }
        for name, values in changes.items()
    }
    provenance = ORIGIN | {"start_weights_sha256": start, "weights_sha256": folder.name}
    (folder / "basin.json").write_text(json.dumps({"provenance": provenance, "shapes": shapes}))
    counts = {
        path_row(condition, statistics, alpha): clean.get(alpha, 360) - cost
        for cost, condition in enumerate(PATH_CONDITIONS)
        for statistics in (INTERPOLATED, MEASURED_ANEW)
        for alpha in ALPHAS
    }
    right = np.arange(IMAGES) < np.array([*counts.values()])[:, None]
    save(folder / "basin", [(row, 0) for row in counts], right, provenance)


FLAT = {name: [0.001, -0.001, 0.002, 0.0] for name in CONDITIONS}
EFFECTIVE = FLAT | {module.NOISE: [-0.5, -0.51, -0.49, -0.52]}


@pytest.fixture
def as_claimed(tmp_path) -> tuple[Path, Path]:
    v0 = results(tmp_path / "v0")
    v1 = results(tmp_path / "v1", noise=0.9, norm=1.0, eigenvalue=5, spread=0.002, noisy=1)
    line(v1, EFFECTIVE, {1.0: 362})
    return v0, v1


def verdicts(v0: Path, v1: Path) -> dict[str, str]:
    return {
        measure.__name__: found.verdict
        for measure, found in zip(module.CLAIMS.values(), findings(Results(v0), Results(v1)))
    }


def test_what_is_as_claimed_holds(as_claimed):
    found = verdicts(*as_claimed)
    assert found.pop("drift") == UNCLEAR  # nothing here is ever wrongly called a truck
    assert found.pop("trade_off") == FAILS  # the same answers to every clean image: nothing flips
    assert found.pop("weak_evidence") == UNCLEAR  # nor are there others to flattened ones
    assert found == dict.fromkeys(found, HOLDS)


def test_the_opposite_does_not_hold(as_claimed):
    v0, v1 = as_claimed
    line(v0, EFFECTIVE | {name: [0.5, 0.5, 0.51, 0.5] for name in ("decimate ×2",)}, {0.5: 300}, start="v1")
    found = verdicts(v1, v0)
    opposite = ("noise_distributions", "noise_gap", "jacobian", "curvature", "steadiness", "curvature_with_noise")
    assert {name: found[name] for name in opposite} == dict.fromkeys(opposite, FAILS)
    assert (found["basin"], found["path"]) == (FAILS, FAILS)


def test_what_cannot_be_told_is_said_to_be_so(as_claimed, tmp_path):
    v0, _ = as_claimed
    other = results(tmp_path / "other", seed=3)
    line(other, EFFECTIVE | {"decimate ×2": [-0.3, 0.3, 0.2, -0.2]}, {0.25: 357})
    found = verdicts(v0, other)
    unclear = ("jacobian", "curvature", "steadiness", "curvature_with_noise", "basin", "path", "trade_off")
    assert {name: found[name] for name in unclear} == dict.fromkeys(unclear, UNCLEAR)


@pytest.mark.parametrize(
    ("method", "value", "title"),
    [
        ("lanczos", {"smallest": None, "largest": None}, "Lanczos"),
        ("power_iteration", {"eigenvalue": 1, "converged": False}, "power iteration"),
    ],
)
def test_a_spectrum_that_did_not_converge_shows_nothing(as_claimed, method, value, title):
    v0, v1 = as_claimed
    study = json.loads((v1 / "curvature.json").read_text())
    study["eigenvalues"]["0.1"][0][method] = value
    (v1 / "curvature.json").write_text(json.dumps(study))
    evidence, verdict = module.curvature(Results(v0), Results(v1))
    assert f"σ = 0.1, {title}: not converged" in evidence
    assert verdict == UNCLEAR


def test_spectra_are_compared_by_size_and_of_the_same_subsets(as_claimed):
    v0, v1 = as_claimed
    study = json.loads((v1 / "curvature.json").read_text())
    for part in study["eigenvalues"]["0.1"]:
        part["power_iteration"]["eigenvalue"] = -40.0  # below v0's −10, and four times its size
    (v1 / "curvature.json").write_text(json.dumps(study))
    assert module.curvature(Results(v0), Results(v1))[1] == FAILS
    study["eigenvalues"]["0.1"].pop()
    (v1 / "curvature.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match="different numbers of subsets"):
        module.curvature(Results(v0), Results(v1))


def test_a_line_between_other_models_is_refused(as_claimed):
    v0, v1 = as_claimed
    line(v1, EFFECTIVE, {}, start="another")
    for claim in (module.basin, module.path):
        with pytest.raises(ValueError, match=r"the line in .*v1 is of other weights than the table in .*v0"):
            claim(Results(v0), Results(v1))


def test_a_folder_without_a_table_is_named(as_claimed, tmp_path):
    with pytest.raises(ValueError, match=r"nothing holds no table; give a folder that `table` wrote"):
        findings(Results(as_claimed[0]), Results(tmp_path / "nothing"))


def test_a_gap_that_differs_between_realisations_has_not_settled(as_claimed):
    v0, v1 = as_claimed
    stored = Table.load(v1 / "noise")
    stored.predictions[0, stored.predictions[0] == stored.labels] += 10  # one realisation, in which nothing is right
    stored.save(v1 / "noise")
    evidence, verdict = module.noise_gap(Results(v0), Results(v1))
    assert "not every realisation comes to lie within 0.2 points of Δ on" in evidence
    assert verdict == UNCLEAR


def test_trucks_are_counted(as_claimed):
    v0, v1 = as_claimed
    stored = Table.load(v1)
    stored.predictions[0, stored.labels == 0] = TRUCK
    stored.save(v1)
    evidence, verdict = module.drift(Results(v0), Results(v1))
    assert verdict == HOLDS
    assert "0.00 % by v0, 0.50 % by v1 (+0.500 points" in evidence  # every tenth image, under one of twenty rows


def test_flattened_images_decide_who_recovers_weak_evidence(as_claimed):
    v0, v1 = as_claimed
    for folder, row in ((v1, 16), (v1, 17)):
        stored = Table.load(folder)
        stored.predictions[row, :100] = (stored.labels[:100] + 1) % CLASSES
        stored.save(folder)
        verdict = module.weak_evidence(Results(v0), Results(v1))[1]
    assert verdict == HOLDS
    assert module.weak_evidence(Results(v1), Results(v0))[1] == FAILS


def test_what_was_not_measured_is_said_to_be_so(as_claimed):
    v0, v1 = as_claimed
    (v1 / "sensitivity.json").unlink()
    found = verdicts(v0, v1)
    assert [name for name, verdict in found.items() if verdict == UNMEASURED] == ["jacobian"]


def test_results_of_other_images_are_refused(as_claimed):
    v0, v1 = as_claimed
    study = json.loads((v1 / "sensitivity.json").read_text())
    study["provenance"]["dataset"]["sha256"] = "other"
    (v1 / "sensitivity.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=r"sensitivity\.json are not of the same images"):
        findings(Results(v0), Results(v1))
    stored = Table.load(v1 / "noise")
    stored.labels[0] = 5
    stored.save(v1 / "noise")
    with pytest.raises(ValueError, match="not of the same rows, seeds and images"):
        findings(Results(v0), Results(v1))


@pytest.mark.parametrize("field", ["dataset", "definitions_version"])
def test_tables_of_other_origin_are_refused(field, as_claimed):
    v0, v1 = as_claimed
    stored = Table.load(v1)
    stored.provenance[field] = {"sha256": "other"} if field == "dataset" else 1
    stored.save(v1)
    with pytest.raises(ValueError, match="by the same definitions"):
        findings(Results(v0), Results(v1))
