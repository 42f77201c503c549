"""Ends of the spectrum of the loss's Hessian in the parameters, under noise."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from nula.data import Split
from nula.evaluation.classifiers import PixelClassifier, require_derivatives
from nula.evaluation.curvature import loss_hessian, power_iteration, spectrum_ends
from nula.evaluation.output import save_json
from nula.evaluation.session import Session
from nula.evaluation.studies.pixels import noisy, pixels_of
from nula.evaluation.studies.sensitivity import SIGMAS
from nula.evaluation.studies.study import Study, add_images
from nula.runtime.arguments import at_least


def curvature(
    classifier: PixelClassifier, data: Split, device: torch.device, sigmas: Sequence[float], subsets: int
) -> dict[str, Any]:
    """Return both ends of the spectrum of the loss's Hessian, and what power iteration says, by strength of noise.

    The data are cut into `subsets` of equal size, each with a spectrum of its own, so that the spread can be told.

    Raises:
        ValueError: the data cannot be cut so.
    """
    if len(data.labels) % subsets:
        raise ValueError(f"{len(data.labels)} images cannot be cut into {subsets} equal subsets.")
    clean, classifier = pixels_of(data, classifier, device)
    results = {}
    for sigma in sigmas:
        found = []
        parts = zip(noisy(clean, sigma).chunk(subsets), data.labels.to(device).chunk(subsets))
        for pixels, labels in tqdm(parts, total=subsets, desc=f"curvature at σ = {sigma}", unit="subset"):
            hessian = loss_hessian(classifier, pixels, labels)
            found.append(
                {"power_iteration": asdict(power_iteration(hessian)), "lanczos": asdict(spectrum_ends(hessian))}
            )
        results[str(sigma)] = found
    return {"eigenvalues": results}


def _run(session: Session) -> None:
    data, subsets = session.images, session.arguments.subsets
    for subject in session.subjects("curvature.json"):
        require_derivatives(subject.classifier, of_parameters=True)
        result = curvature(subject.classifier, data, session.device, SIGMAS, subsets)
        save_json(result, subject.provenance, subject.output / "curvature.json")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=192, least=1)
    parser.add_argument(
        "--subsets", type=at_least(2), default=4, help="of those images, each with a spectrum of its own"
    )


CURVATURE = Study(
    name="curvature",
    summary="ends of the spectrum of the loss's Hessian, by Lanczos and by power iteration, under noise",
    run=_run,
    add_options=_add_options,
)
