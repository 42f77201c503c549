"""Train NULA v2 from scratch.

accelerate launch train/train_v2.py --output_dir runs/v2
"""

from nula.train.launch import train_version
from nula.train.recipe import V2, Version
from nula.train.start import FromScratch

VERSION = Version(
    recipe=V2,
    script="train/train_v2.py",
    summary="v2 is trained from scratch, for robustness beyond the perturbations of v0 and v1.",
    color="#009E73",
)
ARCHITECTURE = {
    "stem_channels": 24,
    "stem_dropout": 0.0,
    "hidden_sizes": (112, 240, 320),
    "depths": (1, 1, 1),
    "layer_convolutions": 2,
    "contrast_epsilon": 0.05,
}


def main() -> None:
    """Train by the command line's arguments."""
    train_version(VERSION, FromScratch(ARCHITECTURE), __doc__)


if __name__ == "__main__":
    main()
