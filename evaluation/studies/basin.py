"""What lies on the straight line between a model and the one that it was fine-tuned from."""

import argparse
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from nula.data import Split
from nula.evaluation.classifiers import PixelClassifier, model_sha256, require_derivatives
from nula.evaluation.interpolation import interpolate, shape_along, with_new_statistics
from nula.evaluation.measuring import Operator, class_indices
from nula.evaluation.output import check_place, save_json
from nula.evaluation.session import Session, print_accuracies
from nula.evaluation.studies.pixels import answers, perturbed, pixels_of
from nula.evaluation.studies.study import Study, add_images
from nula.perturbations.appearance import gaussian_noise
from nula.perturbations.sampling import checkerboard, decimate, resize
from nula.records.release import FILE, Release
from nula.records.table import Table

ALPHAS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
INTERPOLATED, MEASURED_ANEW = "interpolated", "measured anew"  # BatchNorm statistics between two models
LINE_BATCH = 100  # images of which the loss along the line has one value

UNPERTURBED, NOISE, RESIZE = "clean", "Gaussian noise σ = 0.05", "resize ×0.25"
CONDITIONS: dict[str, Operator] = {
    UNPERTURBED: lambda pixels, generator: pixels,
    NOISE: lambda pixels, generator: gaussian_noise(pixels, 0.05, generator),
    RESIZE: lambda pixels, generator: resize(pixels, 0.25, "bilinear"),
    "decimate ×2": lambda pixels, generator: decimate(pixels, 2),
    "checkerboard ε = 0.05": lambda pixels, generator: checkerboard(pixels, 0.05),
}
"""Noise, and the structured operators that v1 was fine-tuned on, at the table's strength."""
PATH_CONDITIONS = (UNPERTURBED, NOISE, RESIZE)  # under which accuracy along the line is measured


def path_row(condition: str, statistics: str, alpha: float) -> str:
    """Return the row of `path_table` of images under `condition`, with those BatchNorm statistics."""
    return f"{condition}, statistics {statistics}, α = {alpha}"


def path_table(
    ends: tuple[PixelClassifier, PixelClassifier],
    data: Split,
    calibration: Split,
    device: torch.device,
    provenance: dict[str, Any],
) -> Table:
    """Return answers along the line between the two models `ends` to the images of `data`, clean, noisy and resized.

    BatchNorm statistics are interpolated, and measured anew on the images of `calibration`.
    """
    start, end = ends
    measured_on, _ = pixels_of(calibration, start, device)
    clean, start = pixels_of(data, start, device)
    pixels = {name: perturbed(clean, CONDITIONS[name]) for name in PATH_CONDITIONS}
    found = {}
    for alpha in tqdm(ALPHAS, desc="between the models", unit="α"):
        mixed = interpolate(start, end, alpha)
        models = {INTERPOLATED: mixed, MEASURED_ANEW: with_new_statistics(mixed, measured_on)}
        for statistics, model in models.items():
            for name in PATH_CONDITIONS:
                found[path_row(name, statistics, alpha)] = answers(model, pixels[name])
    return Table(
        rows=tuple(found),
        seeds=(0,) * len(found),
        predictions=np.stack([*found.values()]),
        labels=class_indices(data.labels, len(data.names)),
        provenance=provenance,
    )


def shapes(start: PixelClassifier, end: PixelClassifier, data: Split, device: torch.device) -> dict[str, Any]:
    """Return the loss from `start` along the line to `end`: {"shapes": {operator: {"slopes", "curvatures", "loss"}}}.

    For each operator and batch of `data` there are dL/dα, d²L/dα² and the loss itself at α = 0 and 1, all with the
    BatchNorm statistics of `start`.
    """
    labels = data.labels.to(device)
    clean, start = pixels_of(data, start, device)
    # Along Δθ alone: at the end of the line with the statistics of its start, as the derivatives have it.
    last = dict(end.named_parameters())
    direction = {name: (last[name] - parameter).detach() for name, parameter in start.named_parameters()}
    moved = deepcopy(start)
    moved.load_state_dict({**start.state_dict(), **last})
    found = {}
    for name, operator in tqdm(CONDITIONS.items(), desc="shape along the line", unit="operator"):
        batches = list(zip(perturbed(clean, operator).split(LINE_BATCH), labels.split(LINE_BATCH)))
        found[name] = {
            **asdict(shape_along(start, direction, batches)),
            "loss": {key: _losses(model, batches) for key, model in (("start", start), ("end", moved))},
        }
    return {"shapes": found}


@torch.inference_mode()
def _losses(classifier: PixelClassifier, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    return [F.cross_entropy(classifier(pixels), labels).item() for pixels, labels in batches]


def _start_of(session: Session, model: str) -> str:
    """The model that `model` was fine-tuned from: --start, else the parent of a release in the folder beside it."""
    given: str | None = session.arguments.start
    if given is not None:
        return given
    folder = Path(model)
    release = Release.load(folder) if (folder / FILE).is_file() else None
    start = folder.parent / release.parent if release is not None and release.parent is not None else None
    if release is None or start is None or not (start / FILE).is_file():
        raise ValueError(f"give --start, the model that {model} was fine-tuned from; no release tells it.")
    if Release.load(start).weights_sha256 != release.training["initial_weights_sha256"]:
        raise ValueError(f"give --start: {model} was fine-tuned from other weights than those in {start}.")
    return str(start)


def _run(session: Session) -> None:
    [(model, output)] = session.models
    data = session.images
    if len(data.labels) <= LINE_BATCH:
        raise ValueError(f"basin needs more than {LINE_BATCH} test images, has {len(data.labels)}.")
    calibration, choice = session.part(session.source.train(), len(data.labels))
    start_name = _start_of(session, model)
    start, end = session.classifier(start_name), session.classifier(model)
    require_derivatives(start, of_parameters=True)
    described = session.provenance(model, end, data) | {"start_weights_sha256": model_sha256(start_name)}
    for result in ("basin.json", "basin/provenance.json"):
        check_place(output / result, described, session.arguments.overwrite)
    save_json(shapes(start, end, data, session.device), described, output / "basin.json")
    measured_on = {"split": "train", "images": len(calibration.labels), "sha256": calibration.fingerprint}
    described["statistics"] = measured_on | choice
    path = path_table((start, end), data, calibration, session.device, described)
    path.save(output / "basin")
    print_accuracies(path)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", help="what --model was fine-tuned from; a release's parent unless given")
    add_images(parser, default=2000, least=LINE_BATCH + 1)


BASIN = Study(
    name="basin",
    summary="accuracy, slope and curvature on the line between a model and the one that it was fine-tuned from",
    run=_run,
    add_options=_add_options,
    of_pair=True,
)
