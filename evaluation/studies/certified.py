"""Accuracy of the smoothed classifier that is certified up to an L2 radius."""

import argparse
from typing import Any

import torch
from tqdm import tqdm

from nula.data import Split
from nula.evaluation.classifiers import PixelClassifier
from nula.evaluation.output import save_json
from nula.evaluation.session import Session
from nula.evaluation.studies.pixels import pixels_of
from nula.evaluation.studies.study import Study, add_images
from nula.runtime.arguments import at_least
from nula.smoothing_nula import CONFIDENCE, certify

CERTIFIED_SIGMAS = (0.05, 0.1)  # of the noise of the smoothed classifier; a stronger one certifies further, less


def certified(
    classifier: PixelClassifier, data: Split, device: torch.device, draws: int, *, confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Return what the smoothed classifier answers to each image and its certified radius, for each strength of noise.

    {"draws", "confidence", "truth": [...], "certificates": {σ: {"labels", "bounds", "radii"}}}; the label is None where
    nothing can be certified. Noisy pixels are clamped to [0, 1], which is part of the classifier that is smoothed.
    """

    pixels, seen = pixels_of(data, classifier, device)

    @torch.inference_mode()
    def classify(noisy: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = seen(noisy.clamp(0, 1))
        return logits

    generator = torch.Generator(device).manual_seed(0)
    certificates: dict[str, Any] = {}
    with tqdm(total=len(CERTIFIED_SIGMAS) * len(pixels), desc="certifying", unit="image") as progress:
        for sigma in CERTIFIED_SIGMAS:
            found = []
            for image in pixels:
                found.append(certify(classify, image, sigma, draws, confidence, generator=generator))
                progress.update()
            certificates[str(sigma)] = dict(zip(("labels", "bounds", "radii"), map(list, zip(*found))))
    return {"draws": draws, "confidence": confidence, "truth": data.labels.tolist(), "certificates": certificates}


def _run(session: Session) -> None:
    data = session.images
    for subject in session.subjects("certified.json"):
        result = certified(subject.classifier, data, session.device, session.arguments.draws)
        save_json(result, subject.provenance, subject.output / "certified.json")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_images(parser, default=100, least=1)
    parser.add_argument("--draws", type=at_least(1), default=500, help="of the noise for each image and strength")


CERTIFIED = Study(
    name="certified",
    summary="accuracy of the smoothed classifier that is certified up to an L2 radius",
    run=_run,
    add_options=_add_options,
)
