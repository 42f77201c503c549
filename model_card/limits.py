"""What a release is bad at, in sentences, from its results alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nula.evaluation.null_space import PROJECTIONS, within_bounds
from nula.records.release import Results
from nula.records.statistics import class_accuracies, confusion_matrix
from nula.records.table import CLEAN, Table, row_title


def limits(results: Results) -> list[str]:
    """Return the worst rows, worst classes and confusions, calibration, and attacks, of those that were measured.

    Raises:
        ValueError: there is no table of the twenty rows.
    """
    table = results.table()
    if table is None:
        raise ValueError(f"{results.folder} holds no table of the twenty rows.")
    cifar10, accuracies = table.of_cifar10, table.accuracies()
    worst = sorted(accuracies, key=accuracies.__getitem__)[:3]
    told = (f"{row_title(row, cifar10)} ({accuracies[row]:.2f} %)" for row in worst)
    found = [f"The worst rows: {', '.join(told)}."]
    found += [of_classes(table, row) for row in dict.fromkeys((CLEAN, worst[0]))]
    scores, attacked = results.record("calibration"), results.table("null_space")
    if scores is not None:
        found.append(of_confidence(scores["rows"], cifar10))
        if "calibrated_rows" in scores:
            error = 100 * scores["calibrated_rows"][CLEAN]["expected_calibration_error"]
            found.append(f"With `calibrated=True` they are {error:.1f} points apart under {row_title(CLEAN, cifar10)}.")
    return found if attacked is None else [*found, of_attacks(attacked.accuracies())]


def of_classes(table: Table, name: str) -> str:
    """Return the three classes that are called right least often in the row `name`, and the commonest error."""
    row, classes, title = table.row(name), table.classes, row_title(name, table.of_cifar10)
    shares = 100 * class_accuracies(row.labels, row.predictions, len(classes))
    present = [index for index in shares.argsort()[:3] if not np.isnan(shares[index])]
    worst = ", ".join(f"{classes[index]} ({shares[index]:.1f} %)" for index in present)
    confusion = confusion_matrix(row.labels, row.predictions, len(classes))
    errors = confusion - np.diag(confusion.diagonal())
    if not errors.any():
        return f"The worst classes under {title}: {worst}. There is no error."
    actual, called = np.unravel_index(errors.argmax(), errors.shape)
    share = 100 * errors[actual, called] / confusion[actual].sum()
    return (
        f"The worst classes under {title}: {worst}. The commonest error is {classes[actual]} called "
        f"{classes[called]}, {share:.1f} % of that class."
    )


def of_confidence(rows: Mapping[str, Mapping[str, Any]], cifar10: bool = True) -> str:
    """Return how far the scores are from probabilities, clean and at worst."""
    errors = {row: 100 * scores["expected_calibration_error"] for row, scores in rows.items()}
    worst = max(errors, key=errors.__getitem__)
    at_worst = "" if worst == CLEAN else f" and {errors[worst]:.1f} under {worst}"
    return (
        "The scores are not calibrated probabilities: confidence and accuracy are "
        f"{errors[CLEAN]:.1f} points apart under {row_title(CLEAN, cifar10)}{at_worst} (expected calibration error)."
    )


def of_attacks(accuracies: Mapping[str, float]) -> str:
    """Return what the strongest attack leaves, and the strongest of those that downsampling removes."""
    null_spaces = [name for name, projection in PROJECTIONS.items() if projection is not within_bounds]
    hidden = [row for row in accuracies if row.partition(" ")[0] in null_spaces]
    worst, unseen = (min(rows, key=accuracies.__getitem__) for rows in (accuracies, hidden))
    return (
        f"It is no defence against an adversary: the attack {worst} leaves {accuracies[worst]:.1f} % of its answers "
        f"right, and {unseen}, of which downsampling shows nothing, {accuracies[unseen]:.1f} %."
    )
