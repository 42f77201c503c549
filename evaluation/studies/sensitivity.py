"""Norm of the Jacobian of the logits with respect to the pixels, under noise."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from nula.data import Split
from nula.evaluation.classifiers import PixelClassifier, require_derivatives
from nula.evaluation.jacobian import jacobian_norms, require_evaluation_mode
from nula.evaluation.output import save_json
from nula.evaluation.session import Session
from nula.evaluation.studies.pixels import noisy, pixels_of
from nula.evaluation.studies.study import Study, add_images

SIGMAS = (0.0, 0.025, 0.05, 0.1)  # of Gaussian noise, at which derivatives are taken


def sensitivity(
    classifier: PixelClassifier, data: Split, device: torch.device, sigmas: Sequence[float]
) -> dict[str, Any]:
    """Return the Frobenius norm of each image's Jacobian under noise of each strength: {"norms": {σ: [...]}}."""
    require_evaluation_mode(classifier)
    pixels, classifier = pixels_of(data, classifier, device)
    norms = {}
    for sigma in tqdm(sigmas, desc="Jacobians", unit="σ"):
        values = jacobian_norms(classifier, noisy(pixels, sigma))
        norms[str(sigma)] = [float(f"{value:.5g}") for value in values.tolist()]
    return {"norms": norms}


def _run(session: Session) -> None:
    data = session.images
    for subject in session.subjects("sensitivity.json"):
        require_derivatives(subject.classifier)
        result = sensitivity(subject.classifier, data, session.device, SIGMAS)
        save_json(result, subject.provenance, subject.output / "sensitivity.json")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=1000, least=2)


SENSITIVITY = Study(
    name="sensitivity",
    summary="Frobenius norm of the Jacobian of the logits with respect to the pixels, exactly, under noise",
    run=_run,
    add_options=_add_options,
)
