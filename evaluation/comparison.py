"""Stored tables beside each other, row by row: as text, CSV or markdown."""

import csv
import io
from collections.abc import Mapping, Sequence

from nula.records.statistics import flips, mcnemar_p
from nula.records.table import Table, row_title


def check_comparable(tables: Sequence[Table]) -> None:
    """Raise ValueError unless all tables are of the same rows, seeds and images."""
    for table in tables[1:]:
        if not table.is_comparable(tables[0]):
            raise ValueError("only tables of the same rows, seeds and images can be compared.")


def comparison_lines(a: Table, b: Table) -> list[str]:
    """Return for each row the difference in points of b to a, McNemar's p, and how many answers differ.

    Raises:
        ValueError: the tables are not of the same rows, seeds and images.
    """
    check_comparable([a, b])
    return [
        f"{row_title(first.name, a.of_cifar10):<34} {second.accuracy - first.accuracy:+6.2f}   "
        f"p = {mcnemar_p(first.right, second.right):.2g}   {len(flips(first.predictions, second.predictions))} flips"
        for first, second in zip(a, b)
    ]


def as_text(tables: Mapping[str, Table]) -> str:
    """Compare every table with the first one."""
    (first_name, first), *others = tables.items()
    parts = [[f"{name} against {first_name}", *comparison_lines(first, table)] for name, table in others]
    return "\n\n".join("\n".join(part) for part in parts)


def as_csv(tables: Mapping[str, Table]) -> str:
    """Return a line for each row: its name and seed, then the accuracy in percent of each table."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["perturbation", "seed", *tables])
    writer.writerows([title, seed, *(f"{value:.2f}" for value in values)] for title, seed, values in _cells(tables))
    return stream.getvalue().rstrip("\n")


def as_markdown(tables: Mapping[str, Table]) -> str:
    """Return a table of accuracies in percent, with the difference in points of each later table to the first."""
    first, *others = tables
    head = ["perturbation", *tables, *(f"{name} − {first}" for name in others)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for title, _, values in _cells(tables):
        differences = (f"{value - values[0]:+.2f}".replace("-", "−") for value in values[1:])
        lines.append(f"| {' | '.join([title, *(f'{value:.2f}' for value in values), *differences])} |")
    return "\n".join(lines)


def _cells(tables: Mapping[str, Table]) -> list[tuple[str, int, list[float]]]:
    """(title, seed, accuracy in percent of each table) of every row."""
    check_comparable(list(tables.values()))
    of_cifar10 = next(iter(tables.values())).of_cifar10
    return [
        (row_title(rows[0].name, of_cifar10), rows[0].seed, [row.accuracy for row in rows])
        for rows in zip(*tables.values())
    ]
