"""Logits and predictions of a classifier under a list of perturbations, stored raw; and what an evaluation is of."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from nula.data import Split, to_pixels
from nula.evaluation.classifiers import AT_MODEL, PixelClassifier
from nula.perturbations.suite import ROWS, Perturbation
from nula.records.table import DAMAGED, Table
from nula.runtime.speed import Clock

BLOCK = 500  # images that share a generator, so that noise is the same for any number of processes and batch size
PROBED = 4  # images by whose pixels and logits rows and classifiers are told apart

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


def table_rows(seed: int, rows: Sequence[Perturbation] = ROWS) -> list[Measurement]:
    """Return the twenty rows of the published table, or others."""
    return [Measurement(name=row.name, apply=row.apply, seed=seed) for row in rows]


def perturbed(measurement: Measurement, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Put pixels (B, 3, H, W) under the perturbation of a row.

    Raises:
        ValueError: it fails, or gives something else than as many pixels in [0, 1].
    """
    where = f"the row {measurement.name!r}"
    try:
        result: Any = measurement.apply(pixels, generator)
    except Exception as error:  # it may raise anything
        given = tuple(pixels.shape)
        raise ValueError(f"{where} fails on pixels {given}: {type(error).__name__}: {error}") from error
    if not isinstance(result, torch.Tensor) or result.shape != pixels.shape or result.dtype != pixels.dtype:
        told = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
        raise ValueError(f"{where} gives {told}, must be {pixels.dtype} {tuple(pixels.shape)}, as it got.")
    if not bool(((result >= 0) & (result <= 1)).all()):
        raise ValueError(f"{where} gives pixels outside of [0, 1]; clamp them.")
    return result


@torch.inference_mode()
def predict(
    classifier: PixelClassifier,
    images: Images,
    measurement: Measurement,
    accelerator: Accelerator,
    batch_size: int = BLOCK,
    progress: "tqdm[None] | None" = None,
) -> tuple[torch.Tensor, float]:
    """Give the logits float32 (N, classes) of uint8 `images` under `measurement`, and seconds in the classifier.

    Processes share the blocks; each gets all the logits. Images of different sizes are perturbed one by one, in order
    and by the one generator of their block. The classifier sees `batch_size` images at a time, BLOCK at most.
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
            parts = [perturbed(measurement, joined([classifier.resized(part) for part in parts]), generator)]
        else:
            parts = [perturbed(measurement, part, generator) for part in parts]
        begin = clock.read()
        logits = torch.cat([_logits(classifier, batch) for batch in _batches(parts, batch_size)])
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
    batch_size: int = BLOCK,
    keep_rows: bool = False,
) -> Table:
    """Measure every row of one classifier, which sees `batch_size` images at a time.

    With `folder`, each row is kept in its `partial_folder` once it is measured, and rows that an interrupted evaluation
    left there are not measured again. In the end they are removed, unless `keep_rows` says that the caller does it: one
    who measures several classifiers, and may be interrupted at the last. The provenance gains `seconds` and, of these,
    `forward_seconds` in the classifier.

    Raises:
        ValueError: the classifier gives no finite logits, or needs images of one size.
    """
    kept = None
    if folder is not None:
        kept = partial_folder(folder, classifier, data, measurements, provenance)
        [kept] = broadcast_object_list([kept])  # bits of logits may differ from device to device
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
                row, spent = _kept(file)
                logits.append(row)
                times.append(spent)
                progress.update(len(data.labels))
                continue
            begin = time.perf_counter()
            images = data.images if measurement.images is None else measurement.images
            row, seconds = predict(classifier, images, measurement, accelerator, batch_size, progress)
            if not row.isfinite().all():
                raise ValueError(f"the classifier's logits under {measurement.name} are not all finite.")
            logits.append(row)
            times.append(np.array([time.perf_counter() - begin, seconds]))
            accelerator.wait_for_everyone()  # before a file appears, every process has looked for it
            if file is not None and accelerator.is_main_process:
                _keep(file, row, times[-1])
    if kept is not None and not keep_rows:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(kept)
    return _table(torch.stack(logits), times, data, measurements, provenance, keep_logits)


def class_indices(values: torch.Tensor | np.ndarray, classes: int) -> np.ndarray:
    """Return class indices in the smallest unsigned type that holds so many classes.

    Raises:
        ValueError: a value is none of 0 to `classes` - 1.
    """
    indices = np.asarray(values)
    if indices.size and not (indices.min() >= 0 and indices.max() < classes):
        raise ValueError(f"class indices must be 0 to {classes - 1}, got {indices.min()} to {indices.max()}.")
    return indices.astype(np.min_scalar_type(max(classes - 1, 0)))


@torch.inference_mode()
def partial_folder(
    folder: Path,
    classifier: PixelClassifier,
    data: Split,
    measurements: Sequence[Measurement],
    provenance: dict[str, Any],
) -> Path:
    """Return where an unfinished evaluation keeps its rows: one place for each classifier, images, rows and record.

    What the classifier answers and what each row does is told by a few of the images: by the bits of their logits and
    of their perturbed pixels. Dates are left out of the `provenance`.
    """
    digest = hashlib.sha256()
    identity = {key: value for key, value in provenance.items() if key != "date"}
    digest.update(json.dumps([identity, data.fingerprint, classifier.record()], sort_keys=True).encode())
    probe = _parts(data.images[:PROBED], torch.device("cpu"))
    device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
    for part in probe:
        digest.update(classifier(part.to(device)).float().cpu().numpy().tobytes())
    for measurement in measurements:
        digest.update(f"{measurement.name} {measurement.seed} ".encode())
        if measurement.images is not None:
            digest.update(np.ascontiguousarray(measurement.images).data)
        generator = torch.Generator().manual_seed(measurement.seed)
        for part in probe:
            digest.update(perturbed(measurement, part.clone(), generator).contiguous().numpy().tobytes())
    return folder / f"partial-{digest.hexdigest()[:12]}"


def _logits(classifier: PixelClassifier, parts: list[torch.Tensor]) -> torch.Tensor:
    """float32 (B, classes) of pixels that are perturbed at their own size, or at the model's and sized already."""
    sized = parts if classifier.perturb_at == AT_MODEL else [classifier.resized(part) for part in parts]
    return classifier.classify(joined(sized)).float()


def _batches(parts: list[torch.Tensor], batch_size: int) -> Iterator[list[torch.Tensor]]:
    """The images of `parts`, of which one or each holds one, `batch_size` at a time."""
    if len(parts) == 1:
        yield from ([batch] for batch in parts[0].split(batch_size))
    else:
        yield from (parts[start : start + batch_size] for start in range(0, len(parts), batch_size))


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


def _kept(file: Path) -> tuple[torch.Tensor, np.ndarray]:
    """The logits and times that `_keep` left."""
    try:
        with file.open("rb") as content, np.load(content) as stored:
            return torch.from_numpy(stored["logits"]), stored["times"]
    except DAMAGED as error:
        raise ValueError(f"{file} is damaged; remove it, and its row is measured again.") from error


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
