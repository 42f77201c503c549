"""What a release is bad at, in sentences, from committed result files alone."""

import json
from pathlib import Path

import numpy as np

from nula.configuration_nula import CIFAR10_LABELS
from nula.evaluation.null_space import PROJECTIONS, within_bounds
from nula.model_card.tables import stored_tables
from nula.perturbations.suite import ROWS
from nula.records.statistics import class_accuracies, confusion_matrix
from nula.records.table import Table

CLEAN = ROWS[0].name


def limits(version: str, releases: Path) -> list[str]:
    """Worst rows, worst classes and confusions, calibration, and attacks, of those that were measured."""
    table = stored_tables(releases)[version]
    accuracies = table.accuracies()
    worst = sorted(accuracies, key=accuracies.__getitem__)[:3]
    found = ["The worst rows: " + ", ".join(f"{row} ({accuracies[row]:.2f} %)" for row in worst) + "."]
    found += [of_classes(table, row) for row in (CLEAN, worst[0])]
    record = releases / version / "results" / "calibration.json"
    if record.is_file():
        found.append(of_confidence(json.loads(record.read_text())["rows"]))
    attacked = stored_tables(releases, "null_space").get(version)
    return found if attacked is None else [*found, of_attacks(attacked.accuracies())]


def of_classes(table: Table, row: str) -> str:
    """The three classes that are called right least often under `row`, and the commonest error."""
    predictions = table.predictions[table.rows.index(row)]
    shares = 100 * class_accuracies(table.labels, predictions)
    worst = ", ".join(f"{CIFAR10_LABELS[index]} ({shares[index]:.1f} %)" for index in shares.argsort()[:3])
    confusion = confusion_matrix(table.labels, predictions)
    errors = confusion - np.diag(confusion.diagonal())
    actual, called = np.unravel_index(errors.argmax(), errors.shape)
    share = 100 * errors[actual, called] / confusion[actual].sum()
    return (
        f"The worst classes under {row}: {worst}. The commonest error is {CIFAR10_LABELS[actual]} called "
        f"{CIFAR10_LABELS[called]}, {share:.1f} % of that class."
    )


def of_confidence(rows: dict[str, dict[str, float]]) -> str:
    """How far the scores are from probabilities, clean and at worst."""
    errors = {row: 100 * scores["expected_calibration_error"] for row, scores in rows.items()}
    worst = max(errors, key=errors.__getitem__)
    at_worst = "" if worst == CLEAN else f" and {errors[worst]:.1f} under {worst}"
    return (
        "The scores are not calibrated probabilities: confidence and accuracy are "
        f"{errors[CLEAN]:.1f} points apart under {CLEAN}{at_worst} (expected calibration error)."
    )


def of_attacks(accuracies: dict[str, float]) -> str:
    """What the strongest attack leaves, and the strongest of those that downsampling removes."""
    null_spaces = [name for name, projection in PROJECTIONS.items() if projection is not within_bounds]
    hidden = [row for row in accuracies if row.partition(" ")[0] in null_spaces]
    worst, unseen = (min(rows, key=accuracies.__getitem__) for rows in (accuracies, hidden))
    return (
        f"It is no defence against an adversary: the attack {worst} leaves {accuracies[worst]:.1f} % of its answers "
        f"right, and {unseen}, of which downsampling shows nothing, {accuracies[unseen]:.1f} %."
    )
