"""The class predicted for each image under each perturbation, stored raw, and what is read off it by the row's name."""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nula.configuration_nula import CIFAR10_LABELS
from nula.records.cifar10 import is_cifar10
from nula.records.statistics import wilson_interval

CLEAN = "Clean (CIFAR-10 Test)"  # the row of unperturbed images, as the published table calls it

# What numpy raises for a bad file; the last two of one that holds a single array.
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)


def row_title(name: str, of_cifar10: bool) -> str:
    """Return what a row is called in a text: it names CIFAR-10 only where the images are its test split."""
    return name if of_cifar10 or name != CLEAN else "Clean"


def origin_of(provenance: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Return what must agree between results that are compared: hash of the images, version of the definitions.

    None stands for what the provenance does not tell.
    """
    return provenance.get("dataset", {}).get("sha256"), provenance.get("definitions_version")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a classifier answered to each image under one perturbation.

    `predictions` and `labels` are (N,) class indices; `logits` are float32 (N, classes), where they were kept.
    """

    name: str
    seed: int
    predictions: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: which images were answered right."""
        return np.asarray(self.predictions == self.labels)

    @property
    def accuracy(self) -> float:
        """Share of right answers in percent."""
        return 100 * float(self.right.mean())

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return Wilson's interval of the accuracy, (low, high) in percent."""
        low, high = wilson_interval(int(self.right.sum()), len(self.labels), confidence)
        return 100 * low, 100 * high


@dataclass(frozen=True, kw_only=True)
class Table:
    """The class predicted for each image in each row, and how that came about.

    `predictions` (R, N) and `labels` (N,) are unsigned class indices, for `rows` with their noise `seeds`; `logits` are
    float32 (R, N, classes), where they were kept.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    predictions: np.ndarray
    labels: np.ndarray
    provenance: dict[str, Any]
    logits: np.ndarray | None = None

    def __iter__(self) -> Iterator[Row]:
        """Iterate over the rows, in the order they were measured in."""
        for index, (name, seed) in enumerate(zip(self.rows, self.seeds)):
            logits = None if self.logits is None else self.logits[index]
            yield Row(name=name, seed=seed, predictions=self.predictions[index], labels=self.labels, logits=logits)

    def row(self, name: str) -> Row:
        """Return the one row called `name`.

        Raises:
            ValueError: no row has this name, or several have it.
        """
        found = self.realisations(name)
        if len(found) > 1:
            raise ValueError(f"the table measures {name!r} {len(found)} times, so that no single row has this name.")
        return found[0]

    def realisations(self, name: str) -> list[Row]:
        """Return all rows called `name`, by ascending seed of their noise.

        Raises:
            ValueError: no row has this name.
        """
        found = sorted((row for row in self if row.name == name), key=lambda row: row.seed)
        if not found:
            raise ValueError(f"the table has no row {name!r}; its rows are {', '.join(dict.fromkeys(self.rows))}.")
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the data; those of CIFAR-10, as all records are of that were made before names were kept."""
        return tuple(self.provenance.get("dataset", {}).get("classes", CIFAR10_LABELS))

    @property
    def origin(self) -> tuple[str | None, int | None]:
        """Which images were measured, and by which definitions, see `origin_of`."""
        return origin_of(self.provenance)

    @property
    def definitions(self) -> dict[str, str]:
        """What the user's own rows do, by their names; empty for rows of this project."""
        return dict(self.provenance.get("rows", {}).get("definitions", {}))

    @property
    def of_cifar10(self) -> bool:
        """Whether the images are the whole of CIFAR-10's test split, as those of the published figures are."""
        return is_cifar10(self.provenance.get("dataset", {"sha256": None}), "test")

    def is_comparable(self, other: "Table") -> bool:
        """Tell whether `other` has the same rows, seeds and images, by the same definitions."""
        same_rows = (self.rows, self.seeds, self.origin) == (other.rows, other.seeds, other.origin)
        same_rows = same_rows and self.definitions == other.definitions
        return same_rows and np.array_equal(self.labels, other.labels)

    def shares_right(self, names: Iterable[str]) -> np.ndarray:
        """Return in percent, (N,), under how many of the rows `names` each image was answered right.

        Raises:
            ValueError: no row has one of these names, or several have it.
        """
        return np.asarray(100 * np.mean([self.row(name).right for name in names], axis=0))

    def accuracies(self) -> dict[str, float]:
        """Return the accuracy in percent of each row, by name.

        Raises:
            ValueError: a row was measured more than once.
        """
        return {name: self.row(name).accuracy for name in self.rows}

    def save(self, folder: Path) -> None:
        """Write predictions.npz, provenance.json and, where there are logits, logits.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / "predictions.npz",
            rows=np.array(self.rows),
            seeds=np.array(self.seeds),
            predictions=self.predictions,
            labels=self.labels,
        )
        (folder / "logits.npz").unlink(missing_ok=True)
        if self.logits is not None:
            np.savez_compressed(folder / "logits.npz", logits=self.logits)
        (folder / "provenance.json").write_text(json.dumps(self.provenance, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Table":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no table.
            ValueError: a file of it is damaged, or not of a table.
        """
        stored = _arrays(folder / "predictions.npz", "rows", "seeds", "predictions", "labels")
        rows, seeds = tuple(stored.pop("rows").tolist()), tuple(stored.pop("seeds").tolist())
        predictions, labels = stored["predictions"], stored["labels"]
        if not (predictions.shape == (len(rows), *labels.shape) and len(seeds) == len(rows) and labels.ndim == 1):
            told = f"{len(rows)} rows, {len(seeds)} seeds, predictions {predictions.shape}, labels {labels.shape}"
            raise ValueError(f"{folder / 'predictions.npz'} is no table: {told} do not go together.")
        if (folder / "logits.npz").exists():
            stored |= _arrays(folder / "logits.npz", "logits")
        return cls(rows=rows, seeds=seeds, provenance=read_record(folder / "provenance.json"), **stored)


def read_record(file: Path) -> dict[str, Any]:
    """Read a JSON file of results.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; measure it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it must hold an object; measure it again.")
    return content


def _arrays(file: Path, *names: str) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as content, np.load(content) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(f"{file} is damaged: it must hold the arrays {', '.join(names)}; measure it again.") from error
