"""How often an answer stays the same when the image is shifted, over all circular shifts of up to eight pixels."""

import argparse

import numpy as np
import torch

from nula.evaluation.measuring import Measurement
from nula.evaluation.session import Session
from nula.evaluation.studies.study import Study, add_images
from nula.perturbations.appearance import shift
from nula.records.statistics import mean_interval
from nula.records.table import Table

LARGEST = 8  # pixels along each axis


def shift_rows() -> list[Measurement]:
    """Return a row for each shift of up to LARGEST pixels along either axis, none among them."""

    def row(down: int, right: int) -> Measurement:
        def apply(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return shift(pixels, down, right)

        return Measurement(name=f"{down} down {right} right", apply=apply)

    places = range(-LARGEST, LARGEST + 1)
    return [row(down, right) for down in places for right in places]


def consistency(table: Table) -> np.ndarray:
    """Return in percent, (N,), for how many pairs of different shifts each image gets the same answer.

    The mean is the consistency of R. Zhang, "Making Convolutional Networks Shift-Invariant Again" (ICML 2019), but of
    all pairs and not of random ones.
    """
    predictions = table.predictions  # (R, N)
    rows = len(predictions)
    votes = np.stack([(predictions == index).sum(axis=0) for index in np.unique(predictions)])
    return np.asarray(100 * (votes * (votes - 1)).sum(axis=0) / (rows * (rows - 1)))


def _run(session: Session) -> None:
    tables = session.measure(shift_rows(), "shifts", print_rows=False)
    if session.accelerator.is_main_process:
        for model, table in tables.items():
            mean, low, high = mean_interval(consistency(table))
            print(f"\n{model}: two shifts of up to {LARGEST} pixels get the same answer in {mean:.2f} % of all pairs,")
            print(f"95 % in {low:.2f} to {high:.2f}")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=1000, least=2)


SHIFTS = Study(
    name="shifts",
    summary="how often an answer stays the same over all circular shifts of up to eight pixels",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
