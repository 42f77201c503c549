"""Logits and predictions of a classifier under a list of perturbations, stored raw, and what its accuracies are."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from nula.data import Split
from nula.perturbations.suite import ROWS
from nula.records.table import Table

BLOCK = 500  # images that share a generator, so that noise is the same for any number of processes

Classifier = Callable[[torch.Tensor], torch.Tensor]  # pixels (B, 3, 32, 32) in [0, 1] -> logits (B, classes)
Perturbation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # pixels in [0, 1] -> the same, perturbed


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of a table: what is done to the images, and the seed of what is random about it.

    `images`, uint8 (N, 32, 32, 3), replace those of the split where they come perturbed already.
    """

    name: str
    apply: Perturbation
    seed: int = 0
    images: np.ndarray | torch.Tensor | None = None


def table_rows(seed: int) -> list[Measurement]:
    """The twenty rows of the published table."""
    return [Measurement(name=row.name, apply=row.apply, seed=seed) for row in ROWS]


@torch.inference_mode()
def predict(
    classifier: Classifier,
    images: np.ndarray | torch.Tensor,
    apply: Perturbation,
    seed: int,
    accelerator: Accelerator,
    progress: tqdm | None = None,
) -> tuple[torch.Tensor, float]:
    """Logits float32 (N, classes) of uint8 `images` (N, 32, 32, 3) under `apply`, and seconds in the classifier.

    Processes share the blocks; each gets all the logits.
    """
    device, count = accelerator.device, len(images)
    blocks = accelerator.prepare_data_loader(DataLoader(range(-(-count // BLOCK)), batch_size=1))
    gathered, done, seconds = [], 0, 0.0
    for (block,) in blocks:
        start = int(block) * BLOCK
        batch = torch.as_tensor(np.ascontiguousarray(images[start : start + BLOCK])).to(device)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + int(block))
        pixels = apply(batch.permute(0, 3, 1, 2).float() / 255, generator)
        begin = _time(device)
        logits = classifier(pixels).float()
        seconds += _time(device) - begin
        padded = F.pad(logits, (0, 0, 0, BLOCK - len(logits)))  # the last block may be shorter
        gathered.append(accelerator.gather_for_metrics(padded.unsqueeze(0)).cpu())  # (processes, BLOCK, classes)
        if progress is not None:
            progress.update(min(len(gathered[-1]) * BLOCK, count - done))
        done += len(gathered[-1]) * BLOCK
    return torch.cat(gathered).flatten(0, 1)[:count], seconds


def evaluate(
    classifier: Classifier,
    data: Split,
    measurements: Sequence[Measurement],
    accelerator: Accelerator,
    provenance: dict,
    *,
    folder: Path | None = None,
    keep_logits: bool = False,
) -> Table:
    """Measure every row of one classifier.

    With `folder`, each row is kept there once it is measured, and rows that an interrupted evaluation of the same
    `provenance` and rows left are not measured again; they are in its `partial_folder`. The provenance
    gains `seconds` and, of these, `forward_seconds` in the classifier.

    Raises:
        ValueError: the classifier gives no finite logits.
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
            row, seconds = predict(classifier, images, measurement.apply, measurement.seed, accelerator, progress)
            if not row.isfinite().all():
                raise ValueError(f"the classifier's logits under {measurement.name} are not all finite.")
            logits.append(row)
            times.append(np.array([time.perf_counter() - begin, seconds]))
            accelerator.wait_for_everyone()  # before a file appears, every process has looked for it
            if file is not None and accelerator.is_main_process:
                kept.mkdir(parents=True, exist_ok=True)
                np.savez(kept / "incomplete.npz", logits=row.numpy(), times=times[-1])
                (kept / "incomplete.npz").replace(file)
    stacked = torch.stack(logits)  # (R, N, classes)
    seconds, forward_seconds = np.sum(times, axis=0).round(1).tolist()
    return Table(
        rows=tuple(measurement.name for measurement in measurements),
        seeds=tuple(measurement.seed for measurement in measurements),
        predictions=stacked.argmax(dim=2).numpy().astype(np.uint8),
        labels=data.labels.numpy().astype(np.uint8),
        provenance={**provenance, "seconds": seconds, "forward_seconds": forward_seconds},
        logits=stacked.numpy() if keep_logits else None,
    )


def _time(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def partial_folder(folder: Path, provenance: dict, measurements: Sequence[Measurement]) -> Path:
    """Where an unfinished evaluation keeps its rows: one place for each `provenance`, dates aside, and set of rows."""
    identity = {key: value for key, value in provenance.items() if key != "date"}
    rows = [(measurement.name, measurement.seed) for measurement in measurements]
    digest = hashlib.sha256(json.dumps([identity, rows], sort_keys=True).encode()).hexdigest()
    return folder / f"partial-{digest[:12]}"
