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
from PIL import Image as PILImage
from tqdm import tqdm

from nula.image_processing_nula import NulaImageProcessor
from nula.opening import checked_labels, find_images, find_labels, open_split
from nula.reading_nula import load_image
from nula.records.cifar10 import CIFAR10
from nula.records.provenance import public_name

if TYPE_CHECKING:  # `datasets` is imported where data are read: cards and payloads do without it
    from datasets import Dataset

FIRST, STRATIFIED = "first", "stratified"  # how images are chosen
DEVIATIONS = 4  # standard deviations of a random choice within which the share of a class is taken for its own
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

    def take(self, indices: torch.Tensor) -> "Split":
        """Return the images at `indices`, int64 (M,), in that order."""
        if isinstance(self.images, torch.Tensor):
            return Split.of(self.images[indices], self.labels[indices], self.names)
        return Split.of([self.images[index] for index in indices.tolist()], self.labels[indices], self.names)

    def part_off(self, indices: torch.Tensor) -> tuple["Split", "Split"]:
        """Return all images but those at `indices`, int64 (M,), and those."""
        rest = torch.ones(len(self.labels), dtype=torch.bool)
        rest[indices] = False
        return self.take(rest.nonzero().flatten()), self.take(indices)


def stratified(labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Draw `count` of the images, of each class in proportion to how often it occurs.

    Shares are rounded by largest remainders, the classes of smaller index first where remainders are equal.

    Args:
        labels: int64 (N,).
        count: how many are drawn.
        seed: of a generator of its own.

    Returns:
        Ascending indices of images, int64 (count,).

    Raises:
        ValueError: there are fewer images, or a class that has images would get none.
    """
    total = len(labels)
    if not 0 < count <= total:
        raise ValueError(f"cannot take {count} of {total} images; give 1 to {total}.")
    classes, sizes = labels.unique(return_counts=True)
    shares, remainders = count * sizes // total, count * sizes % total
    missing = count - int(shares.sum())
    shares[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    if not shares.all():
        without, enough = classes[shares == 0].tolist(), -(-total // int(sizes.min()))
        raise ValueError(
            f"{count} of {total} images, of each class its share, leave {len(without)} of {len(classes)} classes out, "
            f"such as class {without[0]}; {enough} have every class."
        )
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    by_class = drawn[labels[drawn].argsort(stable=True)].split(sizes.tolist())
    return torch.cat([own[:share] for own, share in zip(by_class, shares.tolist())]).sort().values


def has_shares(labels: torch.Tensor, chosen: torch.Tensor) -> bool:
    """Tell whether each class has about its share of the images `chosen`, and one at least.

    Its share is what a random choice gives it. `labels` are int64 (N,), `chosen` indices, int64 (M,).
    """
    total, count = len(labels), len(chosen)
    sizes = labels.bincount()
    expected = sizes.double() * count / total
    variance = expected * (1 - sizes / total) * (total - count) / max(total - 1, 1)  # of a hypergeometric number
    found = labels[chosen].bincount(minlength=len(sizes))
    near = (found - expected).abs() <= DEVIATIONS * variance.sqrt()
    return bool((near & ((found > 0) | (sizes == 0))).all())


def part_of(split: Split, count: int) -> tuple[Split, str]:
    """Return `count` images of a split, all where there are fewer, and how they were chosen.

    They are the first where each class has its share of these, as in CIFAR-10 and in shuffled data, or where they are
    fewer than the classes; and else a stratified choice, as the first images of a folder are of one class.
    """
    count = min(count, len(split.labels))
    first = torch.arange(count)
    if count < len(split.labels.unique()) or has_shares(split.labels, first):
        return split.first(count), FIRST
    return split.take(stratified(split.labels, count, seed=0)), STRATIFIED


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
        """Return what records tell of the images `data` of `split`; of a local path its last part, without a slash."""
        return {
            "name": public_name(self.dataset),
            "split": split,
            "images": len(data.labels),
            "sha256": data.fingerprint,
            "classes": list(data.names),
        }

    def test_names(self) -> tuple[str, ...]:
        """Return the class names of the test split, without decoding an image; raises as `load_split` says."""
        where = f"{self.dataset} ({self.test_split})"
        rows = open_split(self.dataset, self.test_split)
        find_images(rows.features, self.image_column, where)
        return find_labels(rows, self.label_column, where)[1]

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
    rows = open_split(dataset, split)
    if not len(rows):
        raise ValueError(f"{where} is empty; give a split with at least one image.")
    image_column = find_images(rows.features, image_column, where)
    label_column, names = find_labels(rows, label_column, where)
    labels = checked_labels(rows[label_column], names, where)
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


def _decoded(source: dict[str, Any] | None) -> Any:
    if source is None:
        raise ValueError("there is none.")
    return load_image(source["path"] if source["bytes"] is None else source["bytes"])


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
