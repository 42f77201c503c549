"""The table: accuracy under the twenty perturbations, its calibration, and logits that a copy is checked by."""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nula.data import Split, to_pixels
from nula.evaluation.classifiers import PixelClassifier
from nula.evaluation.importing import imported_rows
from nula.evaluation.measuring import table_rows
from nula.evaluation.output import save_json
from nula.evaluation.session import Session
from nula.evaluation.studies.pixels import pixels_of
from nula.evaluation.studies.study import Study, add_images
from nula.perturbations.suite import ROWS
from nula.records.statistics import calibration
from nula.records.table import Table
from nula.runtime.arguments import at_least

GOLDEN_IMAGES = 16


def save_golden(classifier: PixelClassifier, data: Split, device: torch.device, file: Path) -> None:
    """Keep the first images at the model's size, uint8 (16, H, W, 3), and their logits, to check a copy of it by."""
    first = data.first(min(GOLDEN_IMAGES, len(data.labels)))
    with torch.inference_mode():
        pixels, seen = pixels_of(first, classifier, device)
        resized = seen.resized(pixels)
        images = (255 * resized).round().byte().permute(0, 2, 3, 1)
        logits = classifier.classify(to_pixels(images)).float()
    np.savez_compressed(file, images=images.cpu().numpy(), logits=logits.cpu().numpy())


def _leave_beside(session: Session, classifier: PixelClassifier, table: Table, folder: Path) -> None:
    save_golden(classifier, session.images, session.device, folder / "golden.npz")
    logits = {row.name: (row.logits, row.labels) for row in table if row.logits is not None}
    found: dict[str, Any] = {"rows": {name: asdict(calibration(*given)) for name, given in logits.items()}}
    temperature = classifier.temperature
    if temperature is not None:
        scaled = {name: asdict(calibration(values / temperature, labels)) for name, (values, labels) in logits.items()}
        found |= {"temperature": temperature, "calibrated_rows": scaled}
    save_json(found, table.provenance, folder / "calibration.json")


def _run(session: Session) -> None:
    name: str | None = session.arguments.rows
    rows = ROWS if name is None else imported_rows(name)
    told = {"rows": {"from": name, "definitions": {row.name: row.definition for row in rows}}}
    recorded = None if name is None else told
    session.measure(table_rows(session.arguments.seed, rows), recorded=recorded, after=partial(_leave_beside, session))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=at_least(0, 2**32 - 1), default=0, help="of the noise")
    add_images(parser, default=None, least=1)
    parser.add_argument("--rows", help="package.module:NAME, a tuple of Perturbation, in place of the twenty rows")


TABLE = Study(
    name="table",
    summary="accuracy under the twenty perturbations",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
