"""Images and labels of whatever `datasets` reads, decoded once: the one place where stored bytes become pixels."""

import argparse
import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from huggingface_hub.errors import HFValidationError
from PIL import Image as PILImage
from tqdm import tqdm

from nula.image_processing_nula import NulaImageProcessor
from nula.reading_nula import load_image
from nula.records.cifar10 import CIFAR10
from nula.records.provenance import public_argument
from nula.records.weights import found

if TYPE_CHECKING:  # `datasets` is imported where data are read: cards and payloads do without it
    from datasets import Dataset, Features

SIDE = 32  # pixels: the size that NULA is made for
MEASURED = 100  # images whose size is looked up to foretell the memory that all will take


@dataclass(frozen=True)
class Split:
    """Decoded images with their labels.

    Args:
        images: uint8 (N, H, W, 3), or a list of N tensors (H, W, 3) where sizes differ.
        labels: int64 (N,), indices of `names`.
        names: of the classes.
        fingerprint: SHA-256 of images and labels.
    """

    images: torch.Tensor | list[torch.Tensor]
    labels: torch.Tensor
    names: tuple[str, ...]
    fingerprint: str

    @classmethod
    def of(cls, images: torch.Tensor | list[torch.Tensor], labels: torch.Tensor, names: tuple[str, ...]) -> "Split":
        """Make a split of images and labels, and compute their fingerprint."""
        digest = hashlib.sha256()
        if isinstance(images, torch.Tensor):
            digest.update(images.contiguous().view(-1).numpy().data)
        else:
            for image in images:
                digest.update(str(tuple(image.shape)).encode())
                digest.update(image.contiguous().view(-1).numpy().data)
        digest.update(labels.contiguous().numpy().data)
        return cls(images, labels, names, digest.hexdigest())

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every image; None where sizes differ."""
        return (self.images.shape[1], self.images.shape[2]) if isinstance(self.images, torch.Tensor) else None

    def first(self, count: int) -> "Split":
        """Return the first `count` images.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 < count <= len(self.labels):
            raise ValueError(f"cannot take {count} of {len(self.labels)} images; give 1 to {len(self.labels)}.")
        return Split.of(self.images[:count], self.labels[:count], self.names)

    def part_off(self, count: int) -> tuple["Split", "Split"]:
        """Return all but the last `count` images, and those.

        Raises:
            ValueError: one of the two would be empty.
        """
        if not 0 < count < len(self.labels):
            raise ValueError(f"cannot hold out {count} of {len(self.labels)} images; give 1 to {len(self.labels) - 1}.")
        kept, held_out = slice(None, -count), slice(-count, None)
        return (
            Split.of(self.images[kept], self.labels[kept], self.names),
            Split.of(self.images[held_out], self.labels[held_out], self.names),
        )


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Turn bytes, uint8 (N, H, W, 3), into pixels, float32 (N, 3, H, W) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where the images of a run or a study come from.

    Args:
        dataset: Hub id, a folder of parquet files or of images in a folder a class, or one that `save_to_disk` wrote.
        train_split, test_split: names of its splits.
        image_column, label_column: names of its columns; found by their feature types unless given.
    """

    dataset: str = CIFAR10
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "DataSource":
        """Take the source from arguments that `add_data_arguments` added."""
        names = ("dataset", "train_split", "test_split", "image_column", "label_column")
        return cls(**{name: getattr(arguments, name) for name in names})

    def train(self, image_size: int | None = None) -> Split:
        """Decode the training split, see `load_split`."""
        return self._load(self.train_split, image_size)

    def test(self, image_size: int | None = None) -> Split:
        """Decode the test split, see `load_split`."""
        return self._load(self.test_split, image_size)

    def record(self, split: str, data: Split) -> dict[str, Any]:
        """Return what records tell of the images `data` of `split`; a local path by its last part alone."""
        return {
            "name": public_argument(self.dataset),
            "split": split,
            "images": len(data.labels),
            "sha256": data.fingerprint,
            "classes": list(data.names),
        }

    def _load(self, split: str, image_size: int | None) -> Split:
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return load_split(self.dataset, split, image_size=image_size, **columns)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where images come from; `DataSource.of` reads them."""
    parser.add_argument(
        "--dataset",
        default=CIFAR10,
        help="Hub id, folder of parquet files or of images with a folder for each class, or what save_to_disk wrote",
    )
    parser.add_argument("--train_split", default="train", help="name of the training split")
    parser.add_argument("--test_split", default="test", help="name of the test split")
    parser.add_argument("--image_column", help="column of the images; the only one of images unless given")
    parser.add_argument("--label_column", help="column of the labels; the only one of class labels unless given")


def load_split(
    dataset: str,
    split: str,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Split:
    """Decode a split of a data set into memory.

    Images of any mode become RGB, and with `image_size` are resized to that many pixels a side, just as the pipeline
    does both. Without it they keep their own sizes.

    Args:
        dataset: Hub id, a folder that `datasets.load_dataset` reads (parquet files, or images in a folder for each
            class), or one that `save_to_disk` wrote.
        split: name of the split.
        image_size: pixels a side.
        image_column, label_column: found by the types of the features unless given.

    Raises:
        OSError: there is no such data set.
        ValueError: it has no such split, no or several columns of images or of class labels, fewer than two classes,
            or no images; an image cannot be read, or its label is not one of the classes (the message gives its
            index); or the decoded images would not fit into memory.
    """
    from datasets import Image

    where = f"{dataset} ({split})"
    rows = _open(dataset, split)
    image_column = _image_column(rows.features, image_column, where)
    label_column, names = _label_column(rows, label_column, image_column, where)
    labels = _labels(rows[label_column], names, where)
    encoded = rows.select_columns(image_column).cast_column(image_column, Image(decode=False))
    _check_memory(encoded, image_column, image_size, where)
    size = {"height": image_size, "width": image_size} if image_size else None
    processor = NulaImageProcessor(do_resize=image_size is not None, size=size)
    images = _Images(len(rows))
    for index, row in enumerate(tqdm(encoded, desc=f"decoding {split}", unit="image", leave=False)):
        try:
            pixels = processor.pixels(_decoded(row[image_column]))
        except Exception as error:  # on a broken file PIL raises OSError, SyntaxError, struct.error, ...
            file = (row[image_column] or {}).get("path")
            name = f" ({Path(file).name})" if file else ""
            raise ValueError(f"{where} image {index}{name} cannot be read: {error}") from error
        images.append(pixels[0].permute(1, 2, 0).numpy())
    return Split.of(images.stacked(), labels, names)


class _Images:
    """Images of one size in one array, filled in place; from the first of another size on, each by itself."""

    def __init__(self, count: int):
        self._count, self._done = count, 0
        self._array, self._loose = np.empty((0, 0, 0, 3), dtype=np.uint8), list[np.ndarray]()

    def append(self, image: np.ndarray) -> None:
        if self._done == 0:
            self._array = np.empty((self._count, *image.shape), dtype=np.uint8)
        if not self._loose and image.shape != self._array.shape[1:]:
            self._loose = list(self._array[: self._done])
        if self._loose:
            self._loose.append(image.copy())
        else:
            self._array[self._done] = image
        self._done += 1

    def stacked(self) -> torch.Tensor | list[torch.Tensor]:
        return [torch.from_numpy(image) for image in self._loose] if self._loose else torch.from_numpy(self._array)


def _open(dataset: str, split: str) -> "Dataset":
    from datasets import Dataset, load_dataset, load_from_disk

    folder = Path(dataset)
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        try:
            with found(dataset):
                return load_dataset(dataset, split=split)
        except HFValidationError as error:
            raise OSError(f"there is no folder {dataset} here, and as a Hub id it gives: {error}") from error
        except ValueError as error:  # of a split that is not there, among others
            raise ValueError(f"{dataset} ({split}): {error}") from error
    try:
        stored = load_from_disk(dataset)
    except IndexError as error:  # what it gives for a data set without rows
        raise ValueError(f"{dataset} ({split}) is empty; give a split with at least one image.") from error
    splits = {str(stored.split or "train"): stored} if isinstance(stored, Dataset) else stored
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    return splits[split]


def _decoded(source: dict[str, Any] | None) -> Any:
    if source is None:
        raise ValueError("there is none.")
    return load_image(source["path"] if source["bytes"] is None else source["bytes"])


def _told(features: "Features") -> str:
    return ", ".join(f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in features.items())


def _image_column(features: "Features", asked: str | None, where: str) -> str:
    """The name of the column of images: the one asked for, or the only one."""
    from datasets import Image

    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    if asked is not None and asked not in found:
        raise ValueError(f"{where} has no column {asked!r} of images; it has {_told(features)}.")
    if asked is None and len(found) != 1:
        how_many = "several columns" if found else "no column"
        raise ValueError(f"{where} has {how_many} of images; name one by --image_column; it has {_told(features)}.")
    return asked or found[0]


def _label_column(rows: "Dataset", asked: str | None, image_column: str, where: str) -> tuple[str, tuple[str, ...]]:
    """The name of the column of labels, the one asked for or the only one, and the names of the classes.

    Integers without names are taken where there are no class labels, and count from 0 to the largest.
    """
    from datasets import ClassLabel, Value

    features = rows.features
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    numbered = [name for name, f in features.items() if isinstance(f, Value) and f.dtype.lstrip("u").startswith("int")]
    if asked is not None and asked not in named + numbered:
        raise ValueError(f"{where} has no column {asked!r} of class labels or integers; it has {_told(features)}.")
    found = [asked] if asked is not None else named or numbered
    if len(found) != 1:
        how_many = "several columns" if found else "no column"
        raise ValueError(
            f"{where} has {how_many} of class labels; name one by --label_column (text becomes class labels by "
            f"Dataset.class_encode_column); it has {_told(features)}."
        )
    [column] = found
    if column in named:
        names = tuple(features[column].names)
    else:
        names = tuple(map(str, range(1 + max((value for value in rows[column] if value is not None), default=-1))))
    if len(names) < 2:
        raise ValueError(f"{where} has {len(names)} class in column {column!r}; at least two are needed.")
    return column, names


def _labels(values: list[int | None], names: tuple[str, ...], where: str) -> torch.Tensor:
    for index, value in enumerate(values):
        if value is None or not 0 <= value < len(names):
            raise ValueError(f"{where} image {index} has the label {value}, must be 0 to {len(names) - 1}.")
    return torch.tensor(list(values), dtype=torch.int64)


def _check_memory(encoded: "Dataset", column: str, image_size: int | None, where: str) -> None:
    """ValueError where the decoded images would not fit into the memory that is free."""
    if image_size is not None:
        each = float(3 * image_size**2)
    else:
        areas = []
        for index in np.linspace(0, len(encoded) - 1, min(MEASURED, len(encoded))).astype(int).tolist():
            source = encoded[index][column]
            areas.append(0 if source is None else _area(source))
        each = 3 * float(np.mean(areas))
    needed, free = each * len(encoded), psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{where}: {len(encoded):,} images take about {needed / 2**30:.1f} GiB decoded, and {free / 2**30:.1f} GiB "
            "of memory are free; take a part of them (such as 'train[:10%]' as the split) or a smaller --image_size."
        )


def _area(source: dict[str, Any]) -> int:
    """Pixels of an image as its header tells; 0 where it cannot be read, of which decoding tells more."""
    try:
        with PILImage.open(source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])) as image:
            return image.width * image.height
    except (OSError, SyntaxError, ValueError, struct.error):
        return 0
