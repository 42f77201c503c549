"""Logits and predictions of a classifier under a list of perturbations, stored raw; and what an evaluation is of."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from nula.data import Split, to_pixels
from nula.evaluation.classifiers import AT_MODEL, PixelClassifier
from nula.perturbations.suite import ROWS
from nula.records.table import Table
from nula.runtime.speed import Clock

BLOCK = 500  # images that share a generator, so that noise is the same for any number of processes

Operator = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # pixels in [0, 1] -> the same, perturbed
Images = np.ndarray | torch.Tensor | list[torch.Tensor]  # uint8 (N, H, W, 3), or N of (H, W, 3)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of a table: what is done to the images, and the seed of what is random about it.

    `images`, uint8 (N, H, W, 3), replace those of the split where they come perturbed already.
    """

    name: str
    apply: Operator
    seed: int = 0
    images: np.ndarray | torch.Tensor | None = None


def table_rows(seed: int) -> list[Measurement]:
    """Return the twenty rows of the published table."""
    return [Measurement(name=row.name, apply=row.apply, seed=seed) for row in ROWS]


@torch.inference_mode()
def predict(
    classifier: PixelClassifier,
    images: Images,
    measurement: Measurement,
    accelerator: Accelerator,
    progress: "tqdm[None] | None" = None,
) -> tuple[torch.Tensor, float]:
    """Give the logits float32 (N, classes) of uint8 `images` under `measurement`, and seconds in the classifier.

    Processes share the blocks; each gets all the logits. Images of different sizes are perturbed one by one, in order
    and by the one generator of their block.
    """
    device, count = accelerator.device, len(images)
    clock = Clock(device)
    blocks = accelerator.prepare_data_loader(DataLoader(range(-(-count // BLOCK)), batch_size=1))  # type: ignore[arg-type]
    gathered, done, seconds = [], 0, 0.0
    for (block,) in blocks:
        start = int(block) * BLOCK
        generator = torch.Generator().manual_seed(measurement.seed * 1_000_003 + int(block))
        parts = _parts(images[start : start + BLOCK], device)
        if classifier.perturb_at == AT_MODEL:
            sized = measurement.apply(joined([classifier.resized(part) for part in parts]), generator)
            begin = clock.read()
        else:
            parts = [measurement.apply(part, generator) for part in parts]
            begin = clock.read()
            sized = joined([classifier.resized(part) for part in parts])
        logits = classifier.classify(sized).float()
        seconds += clock.read() - begin
        padded = F.pad(logits, (0, 0, 0, BLOCK - len(logits)))  # the last block may be shorter
        gathered.append(accelerator.gather_for_metrics(padded.unsqueeze(0)).cpu())  # (processes, BLOCK, classes)
        if progress is not None:
            progress.update(min(len(gathered[-1]) * BLOCK, count - done))
        done += len(gathered[-1]) * BLOCK
    return torch.cat(gathered).flatten(0, 1)[:count], seconds


def evaluate(
    classifier: PixelClassifier,
    data: Split,
    measurements: Sequence[Measurement],
    accelerator: Accelerator,
    provenance: dict[str, Any],
    *,
    folder: Path | None = None,
    keep_logits: bool = False,
) -> Table:
    """Measure every row of one classifier.

    With `folder`, each row is kept there once it is measured, and rows that an interrupted evaluation of the same
    `provenance` and rows left are not measured again; they are in its `partial_folder`. The provenance gains `seconds`
    and, of these, `forward_seconds` in the classifier.

    Raises:
        ValueError: the classifier gives no finite logits, or needs images of one size.
    """
    kept = None if folder is None else partial_folder(folder, provenance, measurements)
    logits, times = [], []
    with tqdm(
        total=len(measurements) * len(data.labels),
        unit="image",
        desc="evaluating",
        disable=not accelerator.is_main_process,
    ) as progress:
        for index, measurement in enumerate(measurements):
            file = None if kept is None else kept / f"{index:03d}.npz"
            if file is not None and file.exists():
                with np.load(file) as stored:
                    logits.append(torch.from_numpy(stored["logits"]))
                    times.append(stored["times"])
                progress.update(len(data.labels))
                continue
            begin = time.perf_counter()
            images = data.images if measurement.images is None else measurement.images
            row, seconds = predict(classifier, images, measurement, accelerator, progress)
            if not row.isfinite().all():
                raise ValueError(f"the classifier's logits under {measurement.name} are not all finite.")
            logits.append(row)
            times.append(np.array([time.perf_counter() - begin, seconds]))
            accelerator.wait_for_everyone()  # before a file appears, every process has looked for it
            if file is not None and accelerator.is_main_process:
                _keep(file, row, times[-1])
    return _table(torch.stack(logits), times, data, measurements, provenance, keep_logits)


def class_indices(values: torch.Tensor | np.ndarray, classes: int) -> np.ndarray:
    """Return class indices in the smallest unsigned type that holds so many classes."""
    return np.asarray(values).astype(np.min_scalar_type(max(classes - 1, 0)))


def partial_folder(folder: Path, provenance: dict[str, Any], measurements: Sequence[Measurement]) -> Path:
    """Return where an unfinished evaluation keeps its rows: one place for each `provenance` and set of rows.

    Dates aside, the provenance tells evaluations apart, as it names weights, classifier and data.
    """
    identity = {key: value for key, value in provenance.items() if key != "date"}
    rows = [(measurement.name, measurement.seed) for measurement in measurements]
    digest = hashlib.sha256(json.dumps([identity, rows], sort_keys=True).encode()).hexdigest()
    return folder / f"partial-{digest[:12]}"


def _parts(images: Images, device: torch.device) -> list[torch.Tensor]:
    """Pixels (n, 3, H, W) in [0, 1] on `device`: all together, or each by itself where sizes differ."""
    if isinstance(images, list):
        return [to_pixels(image.unsqueeze(0).to(device)) for image in images]
    return [to_pixels(torch.as_tensor(np.ascontiguousarray(images)).to(device))]


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Stack images of one size. Raises ValueError where they have several."""
    sizes = {tuple(part.shape[2:]) for part in parts}
    if len(sizes) > 1:
        raise ValueError("the images are of several sizes, and the model brings them to none; resize the data first.")
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _keep(file: Path, logits: torch.Tensor, times: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    incomplete = file.with_name("incomplete.npz")
    np.savez(incomplete, logits=logits.numpy(), times=times)
    incomplete.replace(file)


def _table(
    logits: torch.Tensor,
    times: list[np.ndarray],
    data: Split,
    measurements: Sequence[Measurement],
    provenance: dict[str, Any],
    keep_logits: bool,
) -> Table:
    seconds, forward_seconds = np.sum(times, axis=0).round(1).tolist()
    classes = max(logits.shape[2], len(data.names))
    return Table(
        rows=tuple(measurement.name for measurement in measurements),
        seeds=tuple(measurement.seed for measurement in measurements),
        predictions=class_indices(logits.argmax(dim=2), classes),
        labels=class_indices(data.labels, classes),
        provenance={**provenance, "seconds": seconds, "forward_seconds": forward_seconds},
        logits=logits.numpy() if keep_logits else None,
    )
