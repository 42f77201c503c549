"""The tables of the model card and of the README, as markdown, from committed result files alone."""

import csv
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev

from nula.evaluation.accuracy import Table
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from nula.perturbations.suite import ROWS

VERSIONS = ("v0", "v1")


def published(version: str) -> dict[str, float]:
    """Row name to published accuracy in percent (model cards of MamaPearl/nula-cifar10-robust-v0 and -v1)."""
    with files("nula.model_card").joinpath("published_table.csv").open(encoding="utf-8") as lines:
        return {line["perturbation"]: float(line[f"published_{version}"]) for line in csv.DictReader(lines)}


def results_table(releases: Path) -> str:
    """The twenty rows as markdown: published and measured accuracy of v0 and v1, and the change from v0 to v1."""
    ours = {version: Table.load(releases / version / "results").accuracies() for version in ("v0", "v1")}
    theirs = {version: published(version) for version in ("v0", "v1")}
    lines = [
        "| perturbation | v0 | published v0 | v1 | published v1 | v1 − v0 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in ROWS:
        v0, v1 = ours["v0"][row.name], ours["v1"][row.name]
        change = f"{v1 - v0:+.2f}".replace("-", "−")
        name = row.name.replace("CIFAR-10 Test", "no perturbation")
        lines.append(
            f"| {name} | {v0:.2f} | {theirs['v0'][row.name]:.2f} "
            f"| **{v1:.2f}** | {theirs['v1'][row.name]:.2f} | {change} |"
        )
    return "\n".join(lines)


def seeds_table(version: str, releases: Path) -> str | None:
    """Accuracy of every training of `version` as markdown, the release's first, and mean ± standard deviation.

    Another seed's training.json and results lie in `releases`/vN/seeds/<seed>. None where there is no other.
    """
    folders = [releases / version, *sorted((releases / version / "seeds").glob("*"))]
    if len(folders) == 1:
        return None
    runs = [json.loads((folder / "training.json").read_text()) for folder in folders]
    accuracies = [Table.load(folder / "results").accuracies() for folder in folders]
    titles = [f"seed {run['seed']}, {len(run['epochs'])} epochs" for run in runs]
    lines = [f"| perturbation | {' | '.join(titles)} | mean ± std |", "|---|" + "--:|" * (len(runs) + 1)]
    for row in ROWS:
        values = [accuracy[row.name] for accuracy in accuracies]
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {row.name} | {cells} | {mean(values):.2f} ± {stdev(values):.2f} |")
    return "\n".join(lines)


def corruptions_table(releases: Path) -> str | None:
    """Accuracy of v0 and v1 under each common corruption, over its severities, and over all. None if not measured."""
    stored = _both(releases, "corruptions")
    if stored is None:
        return None
    accuracies = [table.accuracies() for table in stored]
    means = {
        name: [mean(accuracy[f"{name} {severity}"] for severity in SEVERITIES) for accuracy in accuracies]
        for name in CORRUPTIONS
    }
    means["mean"] = [mean(column) for column in zip(*means.values())]
    return _markdown("corruption", VERSIONS, {name.replace("_", " "): values for name, values in means.items()})


def attacks_table(releases: Path) -> str | None:
    """Accuracy of v0 and v1 under the attacks of the null-space study. None if not measured."""
    stored = _both(releases, "null_space")
    if stored is None:
        return None
    v0, v1 = (table.accuracies() for table in stored)
    first = f"attack on {len(stored[0].labels):,} images"
    return _markdown(first, VERSIONS, {row: (v0[row], v1[row]) for row in v0})


def calibration_table(releases: Path) -> str | None:
    """Expected calibration error, negative log-likelihood and Brier score of v0 and v1 by row. None if not measured."""
    paths = [releases / version / "results" / "calibration.json" for version in VERSIONS]
    if not all(path.is_file() for path in paths):
        return None
    v0, v1 = (json.loads(path.read_text())["rows"] for path in paths)
    fields = {"expected_calibration_error": "ECE", "negative_log_likelihood": "NLL", "brier_score": "Brier"}
    columns = [f"{title} {version}" for title in fields.values() for version in VERSIONS]
    return _markdown(
        "perturbation", columns, {row: [rows[row][field] for field in fields for rows in (v0, v1)] for row in v0}, 3
    )


def _both(releases: Path, study: str) -> list[Table] | None:
    folders = [releases / version / "results" / study for version in VERSIONS]
    return [Table.load(folder) for folder in folders] if all(folder.is_dir() for folder in folders) else None


def _markdown(first: str, columns: Sequence[str], rows: dict[str, Sequence[float]], digits: int = 2) -> str:
    lines = [f"| {first} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in values)} |" for name, values in rows.items()]
    return "\n".join(lines)
