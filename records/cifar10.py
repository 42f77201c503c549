"""What tells CIFAR-10 from other data: its splits have these fingerprints, whatever they were read from."""

from collections.abc import Mapping
from typing import Any

CIFAR10 = "uoft-cs/cifar10"  # on the Hub
CIFAR10_FINGERPRINTS = {
    "train": "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2",
    "test": "e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",
}


def is_cifar10(record: Mapping[str, Any], split: str | None = None) -> bool:
    """Tell whether the data set of a record is the whole of a split of CIFAR-10, or of `split`."""
    known = CIFAR10_FINGERPRINTS.values() if split is None else [CIFAR10_FINGERPRINTS[split]]
    return record["sha256"] in known
