"""Accuracy over the resolution that images are reduced to and brought back from, by three kernels."""

import argparse

import torch

from nula.evaluation.measuring import Measurement
from nula.evaluation.session import Session
from nula.evaluation.studies.study import Study, add_images
from nula.perturbations.sampling import resize

KERNELS = ("nearest", "bilinear", "bicubic")
SIDES = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28)  # of every 32 pixels along each axis


def row_name(kernel: str, side: int) -> str:
    """Return the name of the row of images that went through `side` samples of every 32 pixels."""
    return f"{kernel} {side}/32"


def resolution_rows() -> list[Measurement]:
    """Return the rows: clean, and every kernel at every resolution, without antialiasing."""

    def row(kernel: str, side: int) -> Measurement:
        def apply(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return resize(pixels, side / 32, kernel)

        return Measurement(name=row_name(kernel, side), apply=apply)

    clean = Measurement(name="clean", apply=lambda pixels, generator: pixels)
    return [clean, *(row(kernel, side) for kernel in KERNELS for side in SIDES)]


def _run(session: Session) -> None:
    session.measure(resolution_rows(), "resolution")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=2000, least=1)


RESOLUTION = Study(
    name="resolution",
    summary="accuracy over the resolution that images go through, by three kernels",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
