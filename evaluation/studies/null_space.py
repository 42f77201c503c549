"""Accuracy under attacks that downsampling removes without a trace, beside the same attack unrestricted."""

import argparse
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nula.data import Split
from nula.evaluation.classifiers import PixelClassifier, require_derivatives
from nula.evaluation.jacobian import require_evaluation_mode
from nula.evaluation.measuring import class_indices
from nula.evaluation.null_space import PROJECTIONS, attack
from nula.evaluation.session import Session, print_accuracies
from nula.evaluation.studies.pixels import answers, pixels_of
from nula.evaluation.studies.study import Study, add_images
from nula.records.table import Table

EPSILONS = (2, 4, 8)  # bounds of the attack, in 255ths of the pixel range
BATCH_SIZE = 250  # images that are attacked together


def null_space_table(
    classifier: PixelClassifier, data: Split, device: torch.device, provenance: dict[str, Any]
) -> Table:
    """Return the answers to the images of `data` attacked within each null space and bound, and to the clean ones."""
    require_evaluation_mode(classifier)
    cells = [(projection, epsilon) for projection in PROJECTIONS for epsilon in EPSILONS]
    clean, classifier = pixels_of(data, classifier, device)
    rows, predictions = ["clean"], [answers(classifier, clean)]
    for projection, epsilon in tqdm(cells, desc="attacking", unit="setting"):
        found = []
        for pixels, labels in zip(clean.split(BATCH_SIZE), data.labels.split(BATCH_SIZE)):
            attacked = attack(classifier, pixels, labels.to(device), epsilon / 255, projection)
            found.append(answers(classifier, attacked))
        rows.append(f"{projection} ε = {epsilon}/255")
        predictions.append(np.concatenate(found))
    return Table(
        rows=tuple(rows),
        seeds=(0,) * len(rows),
        predictions=np.stack(predictions),
        labels=class_indices(data.labels, len(data.names)),
        provenance=provenance,
    )


def _run(session: Session) -> None:
    data = session.images
    for subject in session.subjects("null_space/provenance.json"):
        require_derivatives(subject.classifier)
        table = null_space_table(subject.classifier, data, session.device, subject.provenance)
        table.save(subject.output / "null_space")
        print(f"raw results in {subject.output / 'null_space'}")
        print_accuracies(table)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=1000, least=2)


NULL_SPACE = Study(
    name="null-space",
    summary="accuracy under attacks that downsampling removes without a trace, beside the same attack unrestricted",
    run=_run,
    add_options=_add_options,
)
