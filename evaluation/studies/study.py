"""What a study is: a command of `nula evaluate` that leaves a raw result."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from nula.evaluation.session import Session
from nula.runtime.arguments import at_least


def _no_options(parser: argparse.ArgumentParser) -> None:
    """Most studies have none of their own."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study.

    Args:
        name: of its command.
        summary: what it measures, in a line.
        run: measures the models of a session and leaves the results.
        add_options: adds the options that are its own.
        resumable: whether it goes on after the last finished row and shares its images out over processes; other
            studies run in one process.
        of_pair: whether it measures one model together with the one that it was fine-tuned from.
    """

    name: str
    summary: str
    run: Callable[[Session], None]
    add_options: Callable[[argparse.ArgumentParser], None] = _no_options
    resumable: bool = False
    of_pair: bool = False


def add_images(parser: argparse.ArgumentParser, default: int | None, least: int) -> None:
    """Add --images, the number of test images that a study takes; all where the default is None."""
    parser.add_argument(
        "--images",
        type=at_least(least),
        default=default,
        help="of the test split, all where there are fewer: the first, where these have each class in proportion; else "
        "a choice that has, by a fixed seed",
    )
