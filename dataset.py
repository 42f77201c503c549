"""A split of CIFAR-10, or of a data set laid out like it, decoded once into tensors."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from datasets import load_dataset
from tqdm import tqdm

from nula.configuration_nula import CIFAR10_LABELS

SIDE = 32  # pixels
CIFAR10 = "uoft-cs/cifar10"  # on the Hub
CIFAR10_FINGERPRINTS = {  # of its splits, whatever folder or mirror they are read from
    "train": "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2",
    "test": "e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",
}


@dataclass(frozen=True)
class Split:
    """`images` uint8 (N, 32, 32, 3), `labels` int64 (N,), and the SHA-256 of both."""

    images: torch.Tensor
    labels: torch.Tensor
    fingerprint: str

    @classmethod
    def of(cls, images: torch.Tensor, labels: torch.Tensor) -> "Split":
        fingerprint = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        return cls(images, labels, fingerprint)

    def first(self, count: int) -> "Split":
        """The first `count` images; ValueError unless there are so many."""
        if not 0 < count <= len(self.labels):
            raise ValueError(f"cannot take {count} of {len(self.labels)} images; give 1 to {len(self.labels)}.")
        return Split.of(self.images[:count], self.labels[:count])

    def part_off(self, count: int) -> tuple["Split", "Split"]:
        """All but the last `count` images, and those; ValueError unless both parts have some."""
        if not 0 < count < len(self.labels):
            raise ValueError(f"cannot hold out {count} of {len(self.labels)} images; give 1 to {len(self.labels) - 1}.")
        return Split.of(self.images[:-count], self.labels[:-count]), Split.of(
            self.images[-count:], self.labels[-count:]
        )


def load_split(dataset: str, split: str) -> Split:
    """Decode `split` of `dataset`, a Hub id such as uoft-cs/cifar10 or a folder of the same layout.

    Needs an image column `img` (or `image`) of 32x32 pictures and a column `label` of the ten classes; anything else
    raises ValueError.
    """
    rows = load_dataset(dataset, split=split)
    column = next((name for name in ("img", "image") if name in rows.column_names), None)
    if column is None or "label" not in rows.column_names:
        raise ValueError(f"{dataset} ({split}) needs columns img and label, has {rows.column_names}.")
    images = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
    for index, row in enumerate(tqdm(rows, desc=f"decoding {split}", unit="image", leave=False)):
        if row[column].size != (SIDE, SIDE):
            raise ValueError(f"{dataset} ({split}) image {index} is {row[column].size}, must be ({SIDE}, {SIDE}).")
        images[index] = np.asarray(row[column].convert("RGB"))
    labels = np.asarray(rows["label"], dtype=np.int64)
    if labels.min() < 0 or labels.max() >= len(CIFAR10_LABELS):
        raise ValueError(
            f"{dataset} ({split}) has labels {labels.min()} to {labels.max()}, must be 0 to {len(CIFAR10_LABELS) - 1}."
        )
    return Split.of(torch.from_numpy(images), torch.from_numpy(labels))
