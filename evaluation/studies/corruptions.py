"""Accuracy under common corruptions at five severities: look-alikes made here, or CIFAR-10-C's own arrays."""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch

from nula.evaluation.measuring import Measurement
from nula.evaluation.session import Session
from nula.evaluation.studies.study import Study
from nula.perturbations.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, STANDARD, corrupt
from nula.records.statistics import mean_interval
from nula.records.table import Table

ARRAYS = "arrays_sha256"  # of the provenance of a table of CIFAR-10-C's own arrays


def corruption_rows(official: Path | None, labels: torch.Tensor) -> list[Measurement]:
    """Return every corruption at every severity: made here, or read from the CIFAR-10-C arrays in `official`.

    Raises:
        FileNotFoundError, ValueError: no arrays there, labels other than `labels` (N,) five times over, or an array
            that is not of five severities of N images.
    """
    count = len(labels)
    if official is None:
        return [_made_here(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    files = [file for name in (*STANDARD, *EXTRA) if (file := official / f"{name}.npy").is_file()]
    if not files:
        raise FileNotFoundError(f"{official} holds none of CIFAR-10-C's arrays, such as fog.npy.")
    if not np.array_equal(_array(official / "labels.npy"), np.tile(labels.numpy(), len(SEVERITIES))):
        raise ValueError(f"{official / 'labels.npy'} does not hold the labels of the data set five times over.")
    rows = []
    for file in files:
        stacked = _array(file)
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


def _array(file: Path) -> np.ndarray:
    try:
        stored: np.ndarray = np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}; download it again.") from error
    return stored


def mean_lines(table: Table) -> list[str]:
    """Say the mean accuracy over the corruptions of a table and their severities, with Student's 95 % interval.

    Of CIFAR-10-C it is that over the standard fifteen, where all are there; the extra four are told of apart.
    """
    there = {name.rpartition(" ")[0] for name in table.rows}
    made_here = ARRAYS not in table.provenance
    groups = {"made here": tuple(CORRUPTIONS)} if made_here else {"standard": STANDARD, "extra": EXTRA}
    lines = []
    for kind, names in groups.items():
        missing = [name for name in names if name not in there]
        title = f"mean over the {len(names)} corruptions {'' if made_here else 'of CIFAR-10-C, '}{kind}"
        if not missing:
            mean, low, high = mean_interval(table.shares_right(f"{n} {s}" for n in names for s in SEVERITIES))
            lines.append(f"{title}: {mean:.2f} %   95 % in {low:.2f} to {high:.2f}")
        elif there & set(names):
            lines.append(f"{title}: not measured, as there is no {', '.join(missing)}")
    return lines


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
    if official is None:
        tables = session.measure(rows, "corruptions")
    else:
        tables = session.measure(rows, "cifar10c", recorded={ARRAYS: array_hashes(official)})
    if session.accelerator.is_main_process:
        for model, table in tables.items():
            print("\n".join(["", model, *mean_lines(table)]))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cifar10c", type=Path, help="folder of CIFAR-10-C's own arrays, in place of look-alikes")


CORRUPTION_STUDY = Study(
    name="corruptions",
    summary="accuracy under fourteen common corruptions at five severities, made here or CIFAR-10-C's own",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
