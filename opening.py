"""Opening a data set, and finding its images and labels: whatever is wrong with it is told of in one line."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nula.records.provenance import looks_local

if TYPE_CHECKING:  # `datasets` is imported where data are read: cards and payloads do without it
    from datasets import Dataset, Features

FORMS = "; give a folder of parquet files or of images in a folder for each class, or what save_to_disk wrote."
MOST_CLASSES = 100_000  # that integers without names may number; larger ones are no labels


def open_split(dataset: str, split: str) -> "Dataset":
    """Return the rows of a split, see `data.load_split`; nothing is decoded.

    Raises:
        OSError: there is no such data set, or the Hub cannot be reached.
        ValueError: it has no such split, or cannot be read.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    folder, where = Path(dataset), f"{dataset} ({split})"
    if looks_local(dataset) and not folder.is_dir():
        kind = "is a file" if folder.is_file() else "there is no such folder"
        raise OSError(f"--dataset {dataset}: {kind}; give a folder or a Hub id, owner/name.")
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        with _told(where, "" if folder.is_dir() else f"there is no folder {dataset} here, and as a Hub id it gives: "):
            return load_dataset(dataset, split=split)
    try:
        with _told(where):
            stored = load_from_disk(dataset)
    except IndexError as error:  # what it gives for a data set without rows
        raise ValueError(f"{where} is empty; give a split with at least one image.") from error
    splits = {str(stored.split or "train"): stored} if isinstance(stored, Dataset) else stored
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    return splits[split]


@contextmanager
def _told(where: str, introduction: str = "") -> Iterator[None]:
    """Tell in one line what the library `datasets` could not do, as an OSError or ValueError."""
    try:
        yield
    except IndexError:
        raise
    except Exception as error:  # it, the Hub's client, pyarrow and the HTTP client each raise classes of their own
        cause: BaseException = error
        while type(error).__name__ == "DatasetGenerationError" and cause.__cause__ is not None:
            cause = cause.__cause__  # it says no more than that there was an error
        told = " ".join(str(cause).split())
        if isinstance(error, ValueError) and not introduction:
            raise ValueError(f"{where}: {told}") from error
        raise OSError(f"{where}: {introduction}{told}{'' if introduction else FORMS}") from error


def find_images(features: "Features", asked: str | None, where: str) -> str:
    """Return the name of the column of images: the one asked for, or the only one.

    Columns of the bytes of image files are taken where none is of images, as other libraries than `datasets` write
    them to parquet files.

    Raises:
        ValueError: there is none, or several and none was asked for.
    """
    from datasets import Image

    named = [name for name, feature in features.items() if isinstance(feature, Image)]
    encoded = [name for name, feature in features.items() if _holds_bytes(feature)]
    if asked is not None and asked not in named + encoded:
        raise ValueError(f"{where} has no column {asked!r} of images; it has {_listed(features)}.")
    found = named or encoded
    if asked is None and len(found) != 1:
        how_many = "several columns" if found else "no column"
        raise ValueError(f"{where} has {how_many} of images; name one by --image_column; it has {_listed(features)}.")
    return asked or found[0]


def find_labels(rows: "Dataset", asked: str | None, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of the column of labels, the one asked for or the only one, and the names of the classes.

    Integers without names are taken where there are no class labels, and count from 0 to the largest.

    Raises:
        ValueError: there is none, or several and none was asked for; or there are fewer than two classes.
    """
    from datasets import ClassLabel, Value

    features = rows.features
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    numbered = [name for name, f in features.items() if isinstance(f, Value) and f.dtype.lstrip("u").startswith("int")]
    if asked is not None and asked not in named + numbered:
        raise ValueError(f"{where} has no column {asked!r} of class labels or integers; it has {_listed(features)}.")
    found = [asked] if asked is not None else named or numbered
    if len(found) > 1:
        raise ValueError(
            f"{where} has several columns of class labels; name one by --label_column; it has {_listed(features)}."
        )
    if not found:
        advice = "other values become class labels by Dataset.class_encode_column"
        if len(features) == 1:
            advice = "images in folders need a folder for each class, two at least"
        raise ValueError(f"{where} has no column of class labels; {advice}; it has {_listed(features)}.")
    [column] = found
    if column in named:
        names = tuple(features[column].names)
    else:
        largest = max((value for value in rows[column] if value is not None), default=-1)
        if largest >= MOST_CLASSES:
            raise ValueError(
                f"{where} has the label {largest} in column {column!r}; integers must number the classes from 0 on, "
                f"{MOST_CLASSES:,} at most."
            )
        names = tuple(map(str, range(1 + largest)))
    if len(names) < 2:
        raise ValueError(f"{where} has {len(names)} class in column {column!r}; at least two are needed.")
    return column, names


def checked_labels(values: Iterable[int | None], names: tuple[str, ...], where: str) -> torch.Tensor:
    """Return labels, int64 (N,).

    Raises:
        ValueError: one is not an index of `names`; the message tells which.
    """
    labels = list(values)
    for index, value in enumerate(labels):
        if value is None or not 0 <= value < len(names):
            unlabelled = "; -1 marks images without a label: give a split that has labels" if value == -1 else ""
            allowed = f"must be 0 to {len(names) - 1}"
            raise ValueError(f"{where} image {index} has the label {value}, {allowed}{unlabelled}.")
    return torch.tensor(labels, dtype=torch.int64)


def _holds_bytes(feature: Any) -> bool:
    """Whether a column is of bytes, or of what `datasets` stores an image as: {"bytes", "path"}."""
    parts = [feature["bytes"]] if isinstance(feature, dict) and "bytes" in feature else [feature]
    return all(getattr(part, "dtype", "") in ("binary", "large_binary") for part in parts)


def _listed(features: "Features") -> str:
    return ", ".join(f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in features.items())
