"""The studies beside the table, each of one model on one data set: what is computed, and the raw result it leaves."""

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from nula.data import Split
from nula.evaluation.curvature import loss_hessian, power_iteration, spectrum_ends
from nula.evaluation.interpolation import interpolate, shape_along, with_new_statistics
from nula.evaluation.jacobian import jacobian_norms, require_evaluation_mode
from nula.evaluation.measuring import Measurement
from nula.evaluation.null_space import PROJECTIONS, attack
from nula.perturbations.appearance import gaussian_noise
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from nula.perturbations.sampling import checkerboard, decimate, resize
from nula.records.table import Table
from nula.smoothing_nula import CONFIDENCE, certify

SIGMAS = (0.0, 0.025, 0.05, 0.1)  # of Gaussian noise, at which derivatives are taken
EPSILONS = (2, 4, 8)  # bounds of the attack, in 255ths of the pixel range
GOLDEN_IMAGES = 16
CERTIFIED_SIGMAS = (0.05, 0.1)  # of the noise of the smoothed classifier; a stronger one certifies further, less
ALPHAS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)

INTERPOLATED, MEASURED_ANEW = "interpolated", "measured anew"  # BatchNorm statistics between two models
LINE_BATCH = 100  # images of which the loss along the line has one value

CLEAN, NOISE, RESIZE = "clean", "Gaussian noise σ = 0.05", "resize ×0.25"
OPERATORS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    CLEAN: lambda pixels, generator: pixels,
    NOISE: lambda pixels, generator: gaussian_noise(pixels, 0.05, generator),
    RESIZE: lambda pixels, generator: resize(pixels, 0.25, "bilinear"),
    "decimate ×2": lambda pixels, generator: decimate(pixels, 2),
    "checkerboard ε = 0.05": lambda pixels, generator: checkerboard(pixels, 0.05),
}
"""The structured operators v1 is fine-tuned on, and noise, at the table's strength."""
PATH_CONDITIONS = (CLEAN, NOISE, RESIZE)  # under which accuracy along the line between two models is measured


def corruption_rows(official: Path | None, labels: torch.Tensor) -> list[Measurement]:
    """Every corruption at every severity: made here, or read from the CIFAR-10-C arrays in the folder `official`.

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


def array_hashes(official: Path) -> dict[str, str]:
    """SHA-256 of every array in a folder of CIFAR-10-C, by file name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(official.glob("*.npy"))}


def _made_here(name: str, severity: int) -> Measurement:
    def apply(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return corrupt(pixels, name, severity, generator)

    return Measurement(name=f"{name} {severity}", apply=apply)


def sensitivity(classifier: torch.nn.Module, data: Split, device: torch.device, sigmas: Sequence[float]) -> dict:
    """Frobenius norm of each image's Jacobian under noise of each strength: {"norms": {σ: [...]}}."""
    require_evaluation_mode(classifier)
    norms = {}
    for sigma in tqdm(sigmas, desc="Jacobians", unit="σ"):
        values = jacobian_norms(classifier, _noisy(data, sigma, device))
        norms[str(sigma)] = [float(f"{value:.5g}") for value in values.tolist()]
    return {"norms": norms}


def curvature(
    classifier: torch.nn.Module, data: Split, device: torch.device, sigmas: Sequence[float], subsets: int
) -> dict:
    """Both ends of the spectrum of the loss's Hessian, and what power iteration says, under noise of each strength.

    The data are cut into `subsets` of equal size (ValueError where they cannot be), each with a spectrum of its own, so
    that the spread can be told.
    """
    if len(data.labels) % subsets:
        raise ValueError(f"{len(data.labels)} images cannot be cut into {subsets} equal subsets.")
    results = {}
    for sigma in sigmas:
        pixels = _noisy(data, sigma, device)
        results[str(sigma)] = []
        parts = zip(pixels.chunk(subsets), data.labels.to(device).chunk(subsets))
        for part in tqdm(parts, total=subsets, desc=f"curvature at σ = {sigma}", unit="subset"):
            hessian = loss_hessian(classifier, *part)
            results[str(sigma)].append(
                {"power_iteration": asdict(power_iteration(hessian)), "lanczos": asdict(spectrum_ends(hessian))}
            )
    return {"eigenvalues": results}


def path_row(condition: str, statistics: str, alpha: float) -> str:
    """The row of `path_table` of images under `condition`, with those BatchNorm statistics."""
    return f"{condition}, statistics {statistics}, α = {alpha}"


def path_table(
    start: torch.nn.Module,
    end: torch.nn.Module,
    data: Split,
    calibration: torch.Tensor,
    device: torch.device,
    provenance: dict,
) -> Table:
    """Answers along the line from `start` to `end` to the images of `data`, clean, noisy and resized.

    BatchNorm statistics are interpolated, and measured anew on the uint8 images `calibration` (N, 32, 32, 3).
    """
    perturbed = {name: _perturbed(data, OPERATORS[name], device) for name in PATH_CONDITIONS}
    answers = {}
    for alpha in tqdm(ALPHAS, desc="between the models", unit="α"):
        mixed = interpolate(start, end, alpha)
        models = {INTERPOLATED: mixed, MEASURED_ANEW: with_new_statistics(mixed, _pixels(calibration, device))}
        for statistics, model in models.items():
            for name, pixels in perturbed.items():
                answers[path_row(name, statistics, alpha)] = _answers(model, pixels)
    return Table(
        rows=tuple(answers),
        seeds=(0,) * len(answers),
        predictions=np.stack([*answers.values()]),
        labels=data.labels.numpy().astype(np.uint8),
        provenance=provenance,
    )


def shapes(start: torch.nn.Module, end: torch.nn.Module, data: Split, device: torch.device) -> dict:
    """The loss from `start` along the line to `end`: {"shapes": {operator: {"slopes", "curvatures", "loss"}}}.

    For each operator and batch of `data` there are dL/dα, d²L/dα² and the loss itself at α = 0 and 1, all with the
    BatchNorm statistics of `start`.
    """
    labels = data.labels.to(device)
    perturbed = {name: _perturbed(data, operator, device) for name, operator in OPERATORS.items()}
    # Along Δθ alone: at the end of the line with the statistics of its start, as the derivatives have it.
    last = dict(end.named_parameters())
    direction = {name: (last[name] - parameter).detach() for name, parameter in start.named_parameters()}
    moved = deepcopy(start)
    moved.load_state_dict({**start.state_dict(), **last})
    found = {}
    for name, pixels in tqdm(perturbed.items(), desc="shape along the line", unit="operator"):
        batches = list(zip(pixels.split(LINE_BATCH), labels.split(LINE_BATCH)))
        found[name] = {
            **asdict(shape_along(start, direction, batches)),
            "loss": {key: _losses(model, batches) for key, model in (("start", start), ("end", moved))},
        }
    return {"shapes": found}


def save_golden(classifier: torch.nn.Module, data: Split, device: torch.device, file: Path) -> None:
    """Keep the first images, uint8 (16, 32, 32, 3), and their logits, by which a copy of the model can be checked."""
    images = data.images[:GOLDEN_IMAGES]
    with torch.inference_mode():
        logits = classifier(_pixels(images, device)).float().cpu()
    np.savez_compressed(file, images=images.numpy(), logits=logits.numpy())


def certified(
    classifier: torch.nn.Module, data: Split, device: torch.device, draws: int, *, confidence: float = CONFIDENCE
) -> dict:
    """What the smoothed classifier answers to each image and its certified radius, for each strength of the noise.

    {"draws", "confidence", "truth": [...], "certificates": {σ: {"labels", "bounds", "radii"}}}; the label is None where
    nothing can be certified. Noisy pixels are clamped to [0, 1], which is part of the classifier that is smoothed.
    """

    @torch.inference_mode()
    def classify(noisy: torch.Tensor) -> torch.Tensor:
        return classifier(noisy.clamp(0, 1))

    generator = torch.Generator(device).manual_seed(0)
    certificates, pixels = {}, _pixels(data.images, device)
    with tqdm(total=len(CERTIFIED_SIGMAS) * len(pixels), desc="certifying", unit="image") as progress:
        for sigma in CERTIFIED_SIGMAS:
            found = []
            for image in pixels:
                found.append(certify(classify, image, sigma, draws, confidence, generator=generator))
                progress.update()
            certificates[str(sigma)] = dict(zip(("labels", "bounds", "radii"), map(list, zip(*found))))
    return {"draws": draws, "confidence": confidence, "truth": data.labels.tolist(), "certificates": certificates}


def null_space_table(
    classifier: torch.nn.Module, data: Split, device: torch.device, provenance: dict, *, batch_size: int = 250
) -> Table:
    """Answers to the images of `data` attacked within each null space and bound, and to the clean ones."""
    require_evaluation_mode(classifier)
    cells = [(projection, epsilon) for projection in PROJECTIONS for epsilon in EPSILONS]
    rows, predictions = ["clean"], [_answers(classifier, _pixels(data.images, device))]
    for projection, epsilon in tqdm(cells, desc="attacking", unit="setting"):
        answers = []
        for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size)):
            pixels = attack(classifier, _pixels(images, device), labels.to(device), epsilon / 255, projection)
            answers.append(_answers(classifier, pixels))
        rows.append(f"{projection} ε = {epsilon}/255")
        predictions.append(np.concatenate(answers))
    return Table(
        rows=tuple(rows),
        seeds=(0,) * len(rows),
        predictions=np.stack(predictions),
        labels=data.labels.numpy().astype(np.uint8),
        provenance=provenance,
    )


def save_json(result: dict, provenance: dict, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"provenance": provenance, **result}, indent=1) + "\n")


def _pixels(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return images.to(device).permute(0, 3, 1, 2).float() / 255


def _perturbed(data: Split, operator: Callable, device: torch.device) -> torch.Tensor:
    return operator(_pixels(data.images, torch.device("cpu")), torch.Generator().manual_seed(0)).to(device)


def _noisy(data: Split, sigma: float, device: torch.device) -> torch.Tensor:
    return _perturbed(data, lambda pixels, generator: gaussian_noise(pixels, sigma, generator), device)


@torch.inference_mode()
def _answers(classifier: torch.nn.Module, pixels: torch.Tensor, batch_size: int = 500) -> np.ndarray:
    return torch.cat([classifier(part).argmax(1) for part in pixels.split(batch_size)]).cpu().numpy().astype(np.uint8)


@torch.inference_mode()
def _losses(classifier: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    return [F.cross_entropy(classifier(pixels), labels).item() for pixels, labels in batches]
