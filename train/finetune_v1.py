"""Fine-tune all parameters of NULA v0 into v1.

accelerate launch train/finetune_v1.py --v0 runs/v0 --output_dir runs/v1
"""

from nula.train.launch import train_version
from nula.train.recipe import V1, Version
from nula.train.start import FromWeights

VERSION = Version(
    recipe=V1,
    script="train/finetune_v1.py",
    summary="v1 is v0 fine-tuned, with no parameter frozen, on stronger resizing and on amplitude noise.",
    color="#0072B2",
    parent="v0",
    published="published_v1",
)


def main() -> None:
    """Train by the command line's arguments."""
    train_version(VERSION, FromWeights("--v0", "MamaPearl/nula-cifar10-robust-v0"), __doc__)


if __name__ == "__main__":
    main()
