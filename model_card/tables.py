"""The tables of the model cards and of the README, as markdown, of the releases that they are given."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from statistics import mean, stdev
from typing import Any

import numpy as np

from nula.evaluation.studies import STUDIES
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from nula.perturbations.suite import ROWS
from nula.records.provenance import speed_of
from nula.records.release import Release, Releases, pairs
from nula.records.statistics import mean_interval
from nula.records.table import Row, Table, row_title

SUMMARY_ROWS = (  # one of each kind
    *("Clean (CIFAR-10 Test)", "Resize x0.25 - Bilinear", "Decimate (x2 Factor)", "Checkerboard ε = 0.05"),
    *("Grayscale (Full Mix)", "Gaussian Noise σ = 0.05"),
)
CALIBRATION_SCORES = {
    "expected_calibration_error": "ECE",
    "negative_log_likelihood": "NLL",
    "brier_score": "Brier",
}


def published(column: str) -> dict[str, float]:
    """Return the published accuracy in percent of each row (model cards of MamaPearl/nula-cifar10-robust-v0 and -v1).

    Raises:
        ValueError: published_table.csv has no such column.
    """
    with files("nula.model_card").joinpath("published_table.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    columns = [name for name in rows[0] if name not in ("category", "perturbation")]
    if column not in columns:
        raise ValueError(f"published_table.csv has no column {column!r}; it has {', '.join(columns)}.")
    return {row["perturbation"]: float(row[column]) for row in rows}


def measured(releases: Releases, study: str = "") -> dict[str, Table]:
    """Return the stored tables of the twenty rows, or of `study`, by release; of those that there are.

    Raises:
        ValueError: they are not all of the same rows and images.
    """
    stored = [(release, release.results.table(study)) for release in releases.values()]
    found = [(release, table) for release, table in stored if table is not None]
    for release, table in found[1:]:
        first, reference = found[0]
        if not table.is_comparable(reference):
            raise ValueError(
                f"{first.results.folder / study} and {release.results.folder / study} are not of the same rows, seeds "
                "and images, by the same definitions; releases beside each other must be."
            )
    return {release.name: table for release, table in found}


def all_on_cifar10(releases: Releases) -> bool:
    """Tell whether whatever was measured of `releases` was measured on CIFAR-10's whole test split."""
    return all(table.of_cifar10 for table in measured(releases).values())


def records(releases: Releases, study: str) -> dict[str, dict[str, Any]]:
    """Return what `study`.json holds, by release; of those that there are."""
    found = {name: release.results.record(study) for name, release in releases.items()}
    return {name: record for name, record in found.items() if record is not None}


def published_beside(releases: Releases) -> dict[str, dict[str, float]]:
    """Return the published figures, by release and row, of those releases that can be compared with them."""
    return {
        name: published(column)
        for name, table in measured(releases).items()
        if (column := releases[name].published) is not None and table.of_cifar10
    }


def published_pair(releases: Releases) -> tuple[Release, Release] | None:
    """Return the first release and the one fine-tuned from it that both can be compared with published figures."""
    known = published_beside(releases)
    return next(((base, tuned) for base, tuned in pairs(releases) if {base.name, tuned.name} <= set(known)), None)


def compared_pair(releases: Releases) -> tuple[Release, Release] | None:
    """Return base and fine-tuned of the pictures that compare two: those that are published, else the first pair."""
    return published_pair(releases) or next(iter(pairs(releases)), None)


def compared_tables(releases: Releases, study: str = "") -> list[tuple[Release, Table]] | None:
    """Return the `compared_pair` with its tables of `study`; None where one of them has none."""
    pair = compared_pair(releases)
    tables = measured({release.name: release for release in pair or ()}, study)
    return [(release, tables[release.name]) for release in pair] if pair and len(tables) == 2 else None


def shared_rows(*rows: Iterable[str]) -> list[str]:
    """Return the names of the suite's rows that all of `rows` have: one added since has not been measured yet."""
    stored = [set(names) for names in rows]
    return [row.name for row in ROWS if all(row.name in names for names in stored)]


def results_table(releases: Releases) -> str:
    """Return the table's rows: each release's measured and published accuracy, then each one's change to its parent.

    What was measured has its 95 % interval below it, Wilson's for an accuracy and Student's, over images, for the
    change. The last of several releases is in bold.
    """
    tables, figures = measured(releases), published_beside(releases)
    changes = [(base.name, tuned.name) for base, tuned in pairs(releases) if {base.name, tuned.name} <= set(tables)]
    columns = []
    for name in tables:
        columns += [name, f"published {name}"] if name in figures else [name]
    columns += [f"{tuned} − {base}" for base, tuned in changes]
    rows, cifar10 = {}, all_on_cifar10(releases)
    for name in shared_rows(*(table.rows for table in tables.values())):
        found = {release: table.row(name) for release, table in tables.items()}
        cells = []
        for release, row in found.items():
            cells.append(_accuracy(row, bold=len(tables) > 1 and release == list(tables)[-1]))
            if release in figures:
                cells.append(f"{figures[release][name]:.2f}" if name in figures[release] else "–")
        cells += [_change(found[base], found[tuned]) for base, tuned in changes]
        rows[row_title(name, cifar10)] = cells
    return markdown_table("perturbation", columns, rows)


def summary_table(releases: Releases) -> str:
    """Return the accuracy of each release under SUMMARY_ROWS and the common corruptions, without intervals.

    Beside it stands what was published of the last release of which anything was.
    """
    tables, cifar10 = measured(releases), all_on_cifar10(releases)
    published_as, figures = next(reversed(published_beside(releases).items()), ("", {}))
    rows = {}
    for name in shared_rows(SUMMARY_ROWS, *(table.rows for table in tables.values())):
        accuracies = [table.row(name).accuracy for table in tables.values()]
        rows[row_title(name, cifar10)] = [
            f"{value:.1f}" for value in [*([figures[name]] if figures else []), *accuracies]
        ]
    corrupted = measured(releases, "corruptions")
    if len(corrupted) == len(tables):
        means = [f"{mean(table.accuracies().values()):.1f}" for table in corrupted.values()]
        rows[f"mean of {len(CORRUPTIONS)} common corruptions"] = [*(["–"] if figures else []), *means]
    return markdown_table("", [*([f"published {published_as}"] if figures else []), *tables], rows)


def definitions_table(cifar10: bool = True) -> str:
    """Return what each row of the suite does to an image."""
    lines = [f"| {row_title(row.name, cifar10)} | {row.definition} |" for row in ROWS]
    return "\n".join(["| row | operator |", "|---|---|", *lines])


def studies_table() -> str:
    """Return what each study beside the table measures."""
    lines = [f"| `{study.name}` | {study.summary} |" for study in STUDIES if study.name != "table"]
    return "\n".join(["| command | measures |", "|---|---|", *lines])


def compatibility_table(record: Mapping[str, Any], releases: Releases) -> str:
    """Return by how much the logits differ where payloads are loaded on other versions of transformers.

    `record` is what compatibility.json holds.
    """
    found = record["environments"]
    lines = [f"| {' | '.join([*found[0]['versions'], *releases])} |"]
    lines += ["|" + "---|" * len(found[0]["versions"]) + "--:|" * len(releases)]
    for environment in found:
        known = environment["difference"]
        differences = [f"{known[name]:.0e}" if name in known else "not measured" for name in releases]
        lines.append(f"| {' | '.join([*environment['versions'].values(), *differences])} |")
    return "\n".join(lines)


def trainings_table(releases: Releases) -> str:
    """Return what every training took and gave, those of other seeds among them, beside public ones for CIFAR-10."""
    rows = {}
    for release in releases.values():
        for training in release.trainings:
            record, table = training.record, training.results.table()
            speed = ["", ""]  # of less than an epoch
            if record["epochs"]:
                images, share = speed_of(record["epochs"], record["flops_per_image"], record["hardware"]["processes"])
                speed = [f"{images:.0f}", f"{100 * share:.0f} %"]
            machines = dict.fromkeys(f"{epoch['machine']}, {epoch['dtype']}" for epoch in record["epochs"])
            title = f"{release.name}, seed {record['seed']}" + (f", from {release.parent}" if release.parent else "")
            rows[title] = [
                f"{_units(record)} {'; '.join(machines)}",
                str(len(record["epochs"])),
                f"{record['seconds'] / 60:.0f}",
                *speed,
                f"{training_pflop(record):.2f}",
                "not measured" if table is None else f"{table.row(table.rows[0]).accuracy:.2f}",
            ]
    with files("nula.model_card").joinpath("public_trainings.csv").open(encoding="utf-8") as lines:
        for public in csv.DictReader(lines):
            title, minutes = f"[{public['name']}]({public['source']})", f"{float(public['seconds']) / 60:.2g}"
            rows[title] = [f"1 × {public['machine']}", "", minutes, "", "", public["pflop"], public["clean"]]
    columns = ["on", "epochs", "minutes", "images/s", "of a matrix product's speed", "PFLOP", "clean"]
    return markdown_table("training", columns, rows)


def training_pflop(training: Mapping[str, Any]) -> float:
    """Return the operations of a training.json's convolutions and matrix products, in units of 10¹⁵."""
    images = sum(sum(epoch["operators"].values()) for epoch in training["epochs"])
    return float(images * training["flops_per_image"] / 1e15)


def training_speed(training: Mapping[str, Any]) -> str:
    """Return how many epochs of a training.json ran where, and how fast.

    Such as "10 epochs on 2 threads of <processor> (<n> images/s, <p> % of what a matrix product in bfloat16 reached)".
    """
    units, processes, parts = _units(training), training["hardware"]["processes"], []
    for (machine, dtype), group in groupby(training["epochs"], lambda epoch: (epoch["machine"], epoch["dtype"])):
        epochs = list(group)
        speed, share = speed_of(epochs, training["flops_per_image"], processes)
        plural = "s" if len(epochs) > 1 else ""
        parts.append(
            f"{len(epochs)} epoch{plural} on {units} {machine} ({speed:.0f} images/s, {100 * share:.0f} % of "
            f"what a matrix product in {dtype} reached)"
        )
    return " and ".join(parts) or "less than an epoch, too short to tell its speed"


def _units(training: Mapping[str, Any]) -> str:
    """Return how many threads or accelerators a training had, as what comes before the name of the machine."""
    hardware = training["hardware"]
    processes = hardware["processes"]
    cpu = hardware["device"] == "cpu"
    return f"{processes * hardware['threads_per_process']} threads of" if cpu else f"{processes} ×"


def seeds_table(release: Release) -> str | None:
    """Return the accuracy of every training of `release`, and mean ± standard deviation; None if there is but one."""
    stored = [(training.record, training.results.table()) for training in release.trainings]
    runs = [(record, table) for record, table in stored if table is not None]
    if len(runs) < 2:
        return None
    titles = [f"seed {record['seed']}, {len(record['epochs'])} epochs" for record, _ in runs]
    rows = {}
    for name in shared_rows(*(table.rows for _, table in runs)):
        values = [table.row(name).accuracy for _, table in runs]
        title = row_title(name, all(table.of_cifar10 for _, table in runs))
        rows[title] = [*(f"{value:.2f}" for value in values), f"{mean(values):.2f} ± {stdev(values):.2f}"]
    return markdown_table("perturbation", [*titles, "mean ± std"], rows)


def corruptions_table(releases: Releases) -> str | None:
    """Return the accuracy under each common corruption, over its severities, and over all. None if not measured.

    With Student's 95 % intervals, over images.
    """
    stored = measured(releases, "corruptions")
    if not stored:
        return None

    def shares(table: Table, names: Sequence[str]) -> np.ndarray:  # (N,): right answers to each image, in percent
        return table.shares_right(f"{name} {severity}" for name in names for severity in SEVERITIES)

    corruptions = {name.replace("_", " "): [name] for name in CORRUPTIONS} | {"mean": list(CORRUPTIONS)}
    rows = {
        title: [_with_interval(*mean_interval(shares(table, names))) for table in stored.values()]
        for title, names in corruptions.items()
    }
    return markdown_table("corruption", list(stored), rows)


def attacks_table(releases: Releases) -> str | None:
    """Return the accuracy under the attacks of the null-space study, with Wilson's 95 % intervals. None: no study."""
    stored = measured(releases, "null_space")
    if not stored:
        return None
    first = next(iter(stored.values()))
    rows = {name: [_accuracy(table.row(name)) for table in stored.values()] for name in first.rows}
    return markdown_table(f"attack on {len(first.labels):,} images", list(stored), rows)


def calibration_table(releases: Releases) -> str | None:
    """Return expected calibration error, negative log-likelihood and Brier score by row. None if not measured.

    Of a release that has a temperature, also of its calibrated scores.
    """
    scores = {}
    for name, record in records(releases, "calibration").items():
        scores[name] = record["rows"]
        if "calibrated_rows" in record:
            scores[f"{name}, calibrated"] = record["calibrated_rows"]
    if not scores:
        return None
    cifar10 = all_on_cifar10(releases)
    columns = [f"{title} {name}" for title in CALIBRATION_SCORES.values() for name in scores]
    rows = {
        row_title(name, cifar10): [
            f"{of_release[name][score]:.3f}" for score in CALIBRATION_SCORES for of_release in scores.values()
        ]
        for name in shared_rows(*scores.values())
    }
    return markdown_table("perturbation", columns, rows)


def markdown_table(first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a table of right-aligned `columns` behind one of names, which is headed `first`."""
    lines = [f"| {first} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _accuracy(row: Row, bold: bool = False) -> str:
    return _with_interval(row.accuracy, *row.interval(), bold=bold)


def _change(base: Row, tuned: Row) -> str:
    change, low, high = mean_interval(100.0 * tuned.right - 100.0 * base.right)
    return f"{change:+.2f}<br><sub>{low:+.2f} to {high:+.2f}</sub>".replace("-", "−")


def _with_interval(value: float, low: float, high: float, bold: bool = False) -> str:
    mark = "**" if bold else ""
    return f"{mark}{value:.2f}{mark}<br><sub>{low:.2f} to {high:.2f}</sub>"
