"""The tables of README and docs, from the results of the releases alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nula.model_card.tables import (
    all_on_cifar10,
    compatibility_table,
    definitions_table,
    results_table,
    studies_table,
    summary_table,
    trainings_table,
)
from nula.records.release import Releases


def with_tables(pages: Mapping[Path, str], releases: Releases, compatibility: Mapping[str, Any]) -> dict[Path, str]:
    """Return the texts of `pages` by file, with each table between its markers replaced.

    `compatibility` is what compatibility.json holds.

    Raises:
        ValueError: a pair of markers is not on just one page, just once.
    """
    derived = {
        "summary": summary_table(releases),
        "results": results_table(releases),
        "trainings": trainings_table(releases),
        "studies": studies_table(),
        "definitions": definitions_table(all_on_cifar10(releases)),
        "compatibility": compatibility_table(compatibility, releases),
    }
    found = dict(pages)
    for name, text in derived.items():
        begin, end = f"<!-- {name}: begin (nula card) -->", f"<!-- {name}: end -->"
        holders = [file for file, page in pages.items() if begin in page or end in page]
        if len(holders) != 1 or (pages[holders[0]].count(begin), pages[holders[0]].count(end)) != (1, 1):
            places = ", ".join(map(str, holders)) or "none"
            raise ValueError(f"one page must hold the markers {begin!r} and {end!r} once each; they are in {places}.")
        before, rest = found[holders[0]].split(begin)
        found[holders[0]] = f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    return found
