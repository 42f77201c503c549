"""Accuracy under common corruptions at five severities: look-alikes made here, or CIFAR-10-C's own arrays."""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch

from nula.evaluation.measuring import Measurement
from nula.evaluation.session import Session
from nula.evaluation.studies.study import Study
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from nula.records.table import Table

EXTRA = {"speckle_noise", "gaussian_blur", "spatter", "saturate"}  # of CIFAR-10-C, beside its fifteen corruptions


def corruption_rows(official: Path | None, labels: torch.Tensor) -> list[Measurement]:
    """Return every corruption at every severity: made here, or read from the CIFAR-10-C arrays in `official`.

    Raises:
        FileNotFoundError, ValueError: no arrays there, labels other than `labels` (N,) five times over, or an array
            that is not of five severities of N images.
    """
    count = len(labels)
    if official is None:
        return [_made_here(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    files = sorted(file for file in official.glob("*.npy") if file.stem != "labels")
    if not files:
        raise FileNotFoundError(f"{official} holds none of CIFAR-10-C's arrays, such as fog.npy.")
    if not np.array_equal(np.load(official / "labels.npy"), np.tile(labels.numpy(), len(SEVERITIES))):
        raise ValueError(f"{official / 'labels.npy'} does not hold the labels of the data set five times over.")
    rows = []
    for file in files:
        stacked = np.load(file, mmap_mode="r")
        if stacked.shape != (len(SEVERITIES) * count, 32, 32, 3) or stacked.dtype != np.uint8:
            raise ValueError(
                f"{file} holds {stacked.dtype} {stacked.shape}, must be uint8 {(len(SEVERITIES) * count, 32, 32, 3)}."
            )
        rows += [
            Measurement(
                name=f"{file.stem} {severity}",
                apply=lambda pixels, generator: pixels,
                images=stacked[(severity - 1) * count : severity * count],
            )
            for severity in SEVERITIES
        ]
    return rows


def means(table: Table) -> dict[str, float]:
    """Return the mean accuracy in percent over CIFAR-10-C's fifteen corruptions, and over its four extra ones.

    As D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
    (ICLR 2019), have it: the extra ones are for choosing a method by, and no part of the mean. Of each the kinds that
    the table has, at every severity; a group without any is left out.
    """
    found: dict[str, list[float]] = {}
    kinds = set()
    for row in table:
        kind = row.name.rpartition(" ")[0]
        kinds.add(kind)
        found.setdefault("extra" if kind in EXTRA else "standard", []).append(row.accuracy)
    counts = {"standard": len(kinds - EXTRA), "extra": len(kinds & EXTRA)}
    return {f"mean of {counts[group]} {group}": float(np.mean(values)) for group, values in found.items()}


def array_hashes(official: Path) -> dict[str, str]:
    """Return the SHA-256 of every array in a folder of CIFAR-10-C, by file name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(official.glob("*.npy"))}


def _made_here(name: str, severity: int) -> Measurement:
    def apply(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return corrupt(pixels, name, severity, generator)

    return Measurement(name=f"{name} {severity}", apply=apply)


def _run(session: Session) -> None:
    official: Path | None = session.arguments.cifar10c
    rows = corruption_rows(official, session.test.labels)
    part = "corruptions" if official is None else "cifar10c"
    session.measure(rows, part, recorded=None if official is None else {"arrays_sha256": array_hashes(official)})
    if session.accelerator.is_main_process:
        for model, output in session.models:
            told = ", ".join(f"{title} {mean:.2f} %" for title, mean in means(Table.load(output / part)).items())
            print(f"\n{model}: {told}")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cifar10c", type=Path, help="folder of CIFAR-10-C's own arrays, in place of look-alikes")


CORRUPTION_STUDY = Study(
    name="corruptions",
    summary="accuracy under fourteen common corruptions at five severities, made here or CIFAR-10-C's own",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
