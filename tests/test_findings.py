"""Verdicts and pictures from result files that were made up, so that each verdict can be forced."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from nula.evaluation import findings as module
from nula.evaluation.accuracy import Table
from nula.evaluation.findings import FAILS, HOLDS, UNCLEAR, UNMEASURED, findings
from nula.evaluation.monte_carlo import row_name
from nula.evaluation.studies import OPERATORS
from nula.model_card import figures, tables
from nula.model_card.card import PICTURES
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from nula.perturbations.suite import ROWS

IMAGES, CLASSES = 400, 10
TRUCK = 9


def table(folder: Path, rows: list[tuple[str, int]], accuracy: float, seed: int) -> None:
    """Predictions that are right with this probability, and else the next class, never a truck."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(IMAGES) % CLASSES).astype(np.uint8)
    wrong = (labels + 1) % (CLASSES - 1)
    right = generator.random((len(rows), IMAGES)) < accuracy
    names, seeds = zip(*rows)
    Table(
        rows=names,
        seeds=seeds,
        predictions=np.where(right, labels, wrong).astype(np.uint8),
        labels=labels,
        provenance={},
    ).save(folder)


def results(folder: Path, *, clean: float, noise: float, norm: float, eigenvalue: float, seed: int) -> Path:
    """A folder of results like those of the release, of one model."""
    generator = np.random.default_rng(seed)
    table(folder, [(row.name, 0) for row in ROWS], clean, seed)
    draws = [(row_name(0.05), draw) for draw in range(5)] + [(row_name(0.1), 0)]
    table(folder / "noise", draws, noise, seed + 1)
    provenance = {"provenance": {"dataset": {"sha256": "same"}}}
    norms = {sigma: (norm * generator.lognormal(0, 0.1, 50)).tolist() for sigma in ("0.0", "0.1")}
    (folder / "sensitivity.json").write_text(json.dumps(provenance | {"norms": norms}))
    parts = [
        {"power_iteration": {"eigenvalue": value}, "lanczos": {"smallest": -value / 10, "largest": value}}
        for value in eigenvalue * generator.lognormal(0, 0.05, 4)
    ]
    (folder / "curvature.json").write_text(json.dumps(provenance | {"eigenvalues": {"0.0": parts, "0.1": parts}}))
    found = {"labels": [3, None, 5, 1], "bounds": [0.9, 0.4, 0.8, 0.7], "radii": [0.2, 0.0, 0.1, 0.05]}
    certificates = provenance | {"truth": [3, 2, 5, 0], "certificates": {"0.1": found}}
    (folder / "certified.json").write_text(json.dumps(certificates))
    return folder


def line(folder: Path, changes: dict[str, list[float]], clean: list[float]) -> None:
    """basin.json with these changes of the loss by operator, one for each of four batches, and this path."""
    shapes = {
        name: {
            "slopes": values,
            "curvatures": [0.0] * len(values),
            "loss": {"start": [1.0] * len(values), "end": (1 + np.array(values)).tolist()},
        }
        for name, values in changes.items()
    }
    accuracies = [{module.CLEAN: value, module.NOISE: value - 5, "resize ×0.25": value - 20} for value in clean]
    path = [
        {"alpha": alpha, "interpolated": accuracy, "measured_anew": accuracy}
        for alpha, accuracy in zip((0.0, 0.5, 1.0), accuracies)
    ]
    (folder / "basin.json").write_text(json.dumps({"path": path, "shapes": shapes}))


FLAT = {name: [0.001, -0.001, 0.002, 0.0] for name in OPERATORS}
EFFECTIVE = FLAT | {module.NOISE: [-0.5, -0.51, -0.49, -0.52]}


@pytest.fixture
def as_claimed(tmp_path) -> tuple[Path, Path]:
    v0 = results(tmp_path / "v0", clean=0.9, noise=0.7, norm=2.0, eigenvalue=10, seed=0)
    v1 = results(tmp_path / "v1", clean=0.9, noise=0.9, norm=1.0, eigenvalue=5, seed=0)
    line(v1, EFFECTIVE, [90, 90, 91])
    return v0, v1


def verdicts(v0: Path, v1: Path) -> dict[str, str]:
    return {measure.__name__: found.verdict for measure, found in zip(module.CLAIMS.values(), findings(v0, v1))}


def test_what_is_as_claimed_holds(as_claimed):
    found = verdicts(*as_claimed)
    assert found.pop("drift") == UNCLEAR  # nothing here is ever wrongly called a truck
    assert found.pop("trade_off") == FAILS  # the same answers to every clean image: nothing flips
    assert set(found.values()) == {HOLDS}


def test_the_opposite_does_not_hold(as_claimed):
    v0, v1 = as_claimed
    line(v0, EFFECTIVE | {name: [0.5, 0.5, 0.51, 0.5] for name in ("decimate ×2",)}, [90, 60, 91])
    found = verdicts(v1, v0)
    assert {found[name] for name in ("noise_distributions", "noise_gap", "jacobian", "curvature")} == {FAILS}
    assert (found["basin"], found["path"]) == (FAILS, FAILS)


def test_what_cannot_be_told_is_said_to_be_so(as_claimed, tmp_path):
    v0, _ = as_claimed
    other = results(tmp_path / "other", clean=0.9, noise=0.7, norm=2.0, eigenvalue=10, seed=3)
    line(other, EFFECTIVE | {"decimate ×2": [-0.3, 0.3, 0.2, -0.2]}, [90, 90, 90])
    found = verdicts(v0, other)
    assert {found[name] for name in ("noise_gap", "jacobian", "curvature", "basin", "trade_off")} == {UNCLEAR}
    study = json.loads((other / "curvature.json").read_text())
    for part in study["eigenvalues"]["0.1"]:
        part["lanczos"] = {"smallest": None, "largest": None}
    (other / "curvature.json").write_text(json.dumps(study))
    assert "σ = 0.1, lanczos: not converged" in module.curvature(v0, other)[0]


def test_trucks_are_counted(as_claimed):
    v0, v1 = as_claimed
    stored = Table.load(v1)
    stored.predictions[0, stored.labels == 0] = TRUCK
    stored.save(v1)
    evidence, verdict = module.drift(v0, v1)
    assert verdict == HOLDS
    assert "0 by v0, 40 by v1 (+10.000 points" in evidence


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
        findings(v0, v1)
    stored = Table.load(v1 / "noise")
    stored.labels[0] = 5
    stored.save(v1 / "noise")
    with pytest.raises(ValueError, match="not of the same rows, seeds and images"):
        findings(v0, v1)


@pytest.mark.parametrize("name", figures.FROM_RESULTS)
def test_every_figure_can_be_drawn(name, as_claimed, tmp_path):
    figure = figures.FROM_RESULTS[name](dict(zip(("v0", "v1"), as_claimed)))
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_the_certified_curve_counts_what_is_right_and_certified_that_far(as_claimed):
    figure = figures.certified(dict(zip(("v0", "v1"), as_claimed)))
    curve, _ = figure.axes[0].lines
    assert curve.get_drawstyle() == "steps-post"
    assert curve.get_xydata().tolist() == [[0, 50], [0.1, 25], [0.2, 0]]


def test_the_card_shows_every_figure():
    assert set(PICTURES) == {*figures.FROM_RESULTS, "perturbations", "flipped"}


def test_figures_of_images_can_be_drawn(as_claimed, test_split, tmp_path):
    figures.perturbations(test_split).savefig(tmp_path / "perturbations.png")
    v0, v1 = as_claimed
    stored = Table.load(v1)
    stored.predictions[0, 3] = (stored.predictions[0, 3] + 1) % 10
    stored.save(v1)
    figure = figures.flipped({"v0": v0, "v1": v1}, test_split)
    assert [axes.get_title() != "" for axes in figure.axes].count(True) == 1
    figure.savefig(tmp_path / "flipped.png")


def test_tables_of_studies(tmp_path):
    """Made-up results whose means are known."""
    labels = np.zeros(4, np.uint8)
    for version, right in (("v0", 1), ("v1", 3)):
        results = tmp_path / version / "results"
        rows = tuple(f"{name} {severity}" for name in CORRUPTIONS for severity in SEVERITIES)
        predictions = np.ones((len(rows), 4), np.uint8)
        predictions[:, :right] = 0
        predictions[1] = 0  # every image at the first corruption's second severity
        Table(rows=rows, seeds=(0,) * len(rows), predictions=predictions, labels=labels, provenance={}).save(
            results / "corruptions"
        )
        Table(
            rows=("clean", "box ε = 2/255"), seeds=(0, 0), predictions=predictions[:2], labels=labels, provenance={}
        ).save(results / "null_space")
        scores = {"expected_calibration_error": 0.25, "negative_log_likelihood": right, "brier_score": 0.125}
        (results / "calibration.json").write_text(json.dumps({"rows": {row.name: scores for row in ROWS}}))
    corruptions = tables.corruptions_table(tmp_path).splitlines()
    assert corruptions[2] == "| gaussian noise | 40.00 | 80.00 |"
    assert corruptions[-1] == f"| mean | {25 + 15 / 14:.2f} | {75 + 5 / 14:.2f} |"
    assert len(corruptions) == 2 + len(CORRUPTIONS) + 1
    attacks = tables.attacks_table(tmp_path).splitlines()
    assert attacks[0] == "| attack on 4 images | v0 | v1 |"
    assert attacks[2:] == ["| clean | 25.00 | 75.00 |", "| box ε = 2/255 | 100.00 | 100.00 |"]
    assert tables.calibration_table(tmp_path).splitlines()[2] == (
        "| Clean (CIFAR-10 Test) | 0.250 | 0.250 | 1.000 | 3.000 | 0.125 | 0.125 |"
    )
    studies = (tables.corruptions_table, tables.attacks_table, tables.calibration_table)
    shutil.rmtree(tmp_path / "v1")
    for table in studies:
        assert " v0 |" in table(tmp_path).splitlines()[0]
        assert "v1" not in table(tmp_path).splitlines()[0]
    shutil.rmtree(tmp_path / "v0")
    assert [table(tmp_path) for table in studies] == [None] * 3
