"""Train NULA v0 from scratch.

accelerate launch train/train_v0.py --output_dir runs/v0
"""

from nula.train.launch import train_version
from nula.train.recipe import V0, Version
from nula.train.start import FromScratch

VERSION = Version(
    recipe=V0,
    script="train/train_v0.py",
    summary="v0 is trained from scratch.",
    color="#E69F00",
    published="published_v0",
)


def main() -> None:
    """Train by the command line's arguments."""
    train_version(VERSION, FromScratch(), __doc__)


if __name__ == "__main__":
    main()
