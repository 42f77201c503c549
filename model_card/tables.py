"""The tables of the model card and of the README, as markdown, from committed result files alone."""

import csv
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from nula.evaluation.claims import paired_tables
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from nula.perturbations.suite import ROWS
from nula.records.statistics import mean_interval, wilson_interval
from nula.records.table import Table

VERSIONS = ("v0", "v1")


def published(version: str) -> dict[str, float]:
    """Row name to published accuracy in percent (model cards of MamaPearl/nula-cifar10-robust-v0 and -v1)."""
    with files("nula.model_card").joinpath("published_table.csv").open(encoding="utf-8") as lines:
        return {line["perturbation"]: float(line[f"published_{version}"]) for line in csv.DictReader(lines)}


def stored_tables(releases: Path, study: str = "") -> dict[str, Table]:
    """The stored tables of the table, or of `study`, by version; of those that there are.

    Raises:
        ValueError: those of v0 and v1 are not of the same rows and images.
    """
    folders = {version: releases / version / "results" / study for version in VERSIONS}
    stored = {version: folder for version, folder in folders.items() if (folder / "predictions.npz").is_file()}
    if len(stored) == len(VERSIONS):
        return dict(zip(VERSIONS, paired_tables(*stored.values())))
    return {version: Table.load(folder) for version, folder in stored.items()}


def results_table(releases: Path) -> str:
    """The twenty rows as markdown: measured and published accuracy of v0, v1 or both, and the change from v0 to v1.

    What was measured has its 95 % interval below it, Wilson's for an accuracy and Student's, over images, for the
    change.
    """
    tables = stored_tables(releases)
    both = len(tables) == len(VERSIONS)
    columns = [f"{title}{version}" for version in tables for title in ("", "published ")]
    lines = [f"| perturbation | {' | '.join(columns + ['v1 − v0'] * both)} |"]
    lines += ["|---|" + "--:|" * (len(columns) + both)]
    for index, row in enumerate(ROWS):
        cells, right = [row.name], []
        for version, table in tables.items():
            right.append(table.predictions[index] == table.labels)
            low, high = wilson_interval(int(right[-1].sum()), len(right[-1]))
            value = _with_interval(100 * right[-1].mean(), 100 * low, 100 * high, bold=version == "v1")
            cells += [value, f"{published(version)[row.name]:.2f}"]
        if both:
            change, low, high = mean_interval(100.0 * right[1] - 100.0 * right[0])
            cells.append(f"{change:+.2f}<br><sub>{low:+.2f} to {high:+.2f}</sub>".replace("-", "−"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def definitions_table() -> str:
    """What each of the twenty rows does to an image, as markdown."""
    return "\n".join(["| row | operator |", "|---|---|", *(f"| {row.name} | {row.definition} |" for row in ROWS)])


def compatibility_table(releases: Path) -> str:
    """By how much the logits differ where the payloads are loaded on other versions of transformers, as markdown."""
    found = json.loads((releases / "compatibility.json").read_text())["environments"]
    lines = [f"| {' | '.join(found[0]['versions'])} | {' | '.join(VERSIONS)} |", "|---|---|---|--:|--:|"]
    for environment in found:
        differences = [f"{environment['difference'][version]:.0e}" for version in VERSIONS]
        lines.append(f"| {' | '.join([*environment['versions'].values(), *differences])} |")
    return "\n".join(lines)


def training_folders(version: str, releases: Path) -> list[Path]:
    """Where training.json and results of every training of `version` lie: the release's first, then other seeds'."""
    return [releases / version, *sorted((releases / version / "seeds").glob("*"))]


def seeds_table(version: str, releases: Path) -> str | None:
    """Accuracy of every training of `version` as markdown and mean ± standard deviation; None: there is but one."""
    folders = training_folders(version, releases)
    if len(folders) == 1:
        return None
    runs = [json.loads((folder / "training.json").read_text()) for folder in folders]
    accuracies = [Table.load(folder / "results").accuracies() for folder in folders]
    titles = [f"seed {run['seed']}, {len(run['epochs'])} epochs" for run in runs]
    rows = {}
    for row in ROWS:
        values = [accuracy[row.name] for accuracy in accuracies]
        rows[row.name] = [*(f"{value:.2f}" for value in values), f"{mean(values):.2f} ± {stdev(values):.2f}"]
    return markdown_table("perturbation", [*titles, "mean ± std"], rows)


def corruptions_table(releases: Path) -> str | None:
    """Accuracy of v0 and v1 under each common corruption, over its severities, and over all. None if not measured.

    With Student's 95 % intervals, over images.
    """
    stored = stored_tables(releases, "corruptions")
    if not stored:
        return None

    def shares(table: Table, names: Sequence[str]) -> np.ndarray:  # (N,): right answers to each image, in percent
        rows = [table.rows.index(f"{name} {severity}") for name in names for severity in SEVERITIES]
        return 100 * (table.predictions[rows] == table.labels).mean(axis=0)

    rows = {name.replace("_", " "): [name] for name in CORRUPTIONS} | {"mean": list(CORRUPTIONS)}
    cells = {
        title: [_with_interval(*mean_interval(shares(table, names))) for table in stored.values()]
        for title, names in rows.items()
    }
    return markdown_table("corruption", list(stored), cells)


def attacks_table(releases: Path) -> str | None:
    """Accuracy of v0 and v1 under the attacks of the null-space study, with Wilson's 95 % intervals; None: no study."""
    stored = stored_tables(releases, "null_space")
    if not stored:
        return None
    rows: dict[str, list[str]] = {}
    for table in stored.values():
        for row, predictions in zip(table.rows, table.predictions):
            right, total = int((predictions == table.labels).sum()), len(table.labels)
            low, high = wilson_interval(right, total)
            rows.setdefault(row, []).append(_with_interval(100 * right / total, 100 * low, 100 * high))
    return markdown_table(f"attack on {total:,} images", list(stored), rows)


def calibration_table(releases: Path) -> str | None:
    """Expected calibration error, negative log-likelihood and Brier score of v0 and v1 by row. None if not measured."""
    records = {version: releases / version / "results" / "calibration.json" for version in VERSIONS}
    scores = {version: json.loads(file.read_text())["rows"] for version, file in records.items() if file.is_file()}
    if not scores:
        return None
    fields = {"expected_calibration_error": "ECE", "negative_log_likelihood": "NLL", "brier_score": "Brier"}
    columns = [f"{title} {version}" for title in fields.values() for version in scores]
    rows = {
        row.name: [f"{scores[version][row.name][field]:.3f}" for field in fields for version in scores] for row in ROWS
    }
    return markdown_table("perturbation", columns, rows)


def markdown_table(first: str, columns: Sequence[str], rows: dict[str, Sequence[str]]) -> str:
    """A table of right-aligned `columns` behind one of names, which is headed `first`."""
    lines = [f"| {first} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _with_interval(value: float, low: float, high: float, bold: bool = False) -> str:
    mark = "**" if bold else ""
    return f"{mark}{value:.2f}{mark}<br><sub>{low:.2f} to {high:.2f}</sub>"
