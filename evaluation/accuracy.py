"""Logits and predictions of a classifier under a list of perturbations, stored raw, and what its accuracies are."""

import hashlib
import json
import shutil
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

from nula.dataset import Split
from nula.perturbations.suite import ROWS

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


@dataclass(frozen=True, kw_only=True)
class Table:
    """The class predicted for each image in each row, and how that came about.

    `predictions` uint8 (R, N) for `rows` with their noise `seeds`; `labels` uint8 (N,); `logits` float16
    (R, N, classes), where they were kept.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    predictions: np.ndarray
    labels: np.ndarray
    provenance: dict
    logits: np.ndarray | None = None

    def accuracies(self) -> dict[str, float]:
        """Row name to accuracy in percent."""
        correct = self.predictions == self.labels
        return {row: 100 * float(share) for row, share in zip(self.rows, correct.mean(axis=1))}

    def save(self, folder: Path) -> None:
        """Write predictions.npz, provenance.json and, where there are logits, logits.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / "predictions.npz",
            rows=np.array(self.rows),
            seeds=np.array(self.seeds),
            predictions=self.predictions,
            labels=self.labels,
        )
        if self.logits is not None:
            np.savez_compressed(folder / "logits.npz", logits=self.logits)
        (folder / "provenance.json").write_text(json.dumps(self.provenance, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Table":
        with np.load(folder / "predictions.npz") as stored:
            arrays = {name: stored[name] for name in ("predictions", "labels")}
            rows, seeds = tuple(stored["rows"].tolist()), tuple(stored["seeds"].tolist())
        if (folder / "logits.npz").exists():
            with np.load(folder / "logits.npz") as stored:
                arrays["logits"] = stored["logits"]
        provenance = json.loads((folder / "provenance.json").read_text())
        return cls(rows=rows, seeds=seeds, provenance=provenance, **arrays)


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
        begin = time.perf_counter()
        logits = classifier(pixels).float()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds += time.perf_counter() - begin
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

    With `folder`, rows are kept there one by one, and those that an interrupted evaluation of the same `provenance`
    left are not computed again; they are removed by `Table.save`'s caller through `forget`.

    Raises:
        ValueError: the classifier gives no finite logits.
    """
    kept = None if folder is None else partial_folder(folder, provenance)
    logits, forward_seconds, begin = [], 0.0, time.perf_counter()
    with tqdm(
        total=len(measurements) * len(data.labels),
        unit="image",
        desc="evaluating",
        disable=not accelerator.is_main_process,
    ) as progress:
        for index, measurement in enumerate(measurements):
            file = None if kept is None else kept / f"{index:03d}.npy"
            if file is not None and file.exists():
                logits.append(torch.from_numpy(np.load(file)))
                progress.update(len(data.labels))
                continue
            images = data.images if measurement.images is None else measurement.images
            row, seconds = predict(classifier, images, measurement.apply, measurement.seed, accelerator, progress)
            if not row.isfinite().all():
                raise ValueError(f"the classifier's logits under {measurement.name} are not all finite.")
            forward_seconds += seconds
            logits.append(row)
            accelerator.wait_for_everyone()  # before a file appears, every process has looked for it
            if file is not None and accelerator.is_main_process:
                kept.mkdir(parents=True, exist_ok=True)
                np.save(kept / "incomplete.npy", row.numpy())
                (kept / "incomplete.npy").replace(file)
    stacked = torch.stack(logits)  # (R, N, classes)
    times = {"seconds": round(time.perf_counter() - begin, 1), "forward_seconds": round(forward_seconds, 1)}
    return Table(
        rows=tuple(measurement.name for measurement in measurements),
        seeds=tuple(measurement.seed for measurement in measurements),
        predictions=stacked.argmax(dim=2).numpy().astype(np.uint8),
        labels=data.labels.numpy().astype(np.uint8),
        provenance={**provenance, **times},
        logits=stacked.half().numpy() if keep_logits else None,
    )


def partial_folder(folder: Path, provenance: dict) -> Path:
    """Where the rows of an evaluation that is not finished are kept: one place for each `provenance`, dates aside."""
    identity = {key: value for key, value in provenance.items() if key != "date"}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder / f"partial-{digest[:12]}"


def save_finished(table: Table, folder: Path, provenance: dict) -> None:
    """Save the table of an evaluation that was started with `folder` and `provenance`, then drop its single rows."""
    table.save(folder)
    shutil.rmtree(partial_folder(folder, provenance), ignore_errors=True)
