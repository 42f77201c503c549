"""Predictions of a model under every row of the table, stored raw, and the accuracies derived from them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nula.perturbations.suite import ROWS, Row

BATCH_SIZE = 500  # images; part of the definition of the noise row, whose noise is drawn batch by batch

Classifier = Callable[[torch.Tensor], torch.Tensor]  # pixels (B, 3, 32, 32) in [0, 1] -> logits (B, classes)


@dataclass(frozen=True)
class Table:
    """`predictions` uint8 (rows, N), the class predicted for each image under each of `rows`; `labels` uint8 (N,)."""

    rows: tuple[str, ...]
    predictions: np.ndarray
    labels: np.ndarray
    provenance: dict

    def accuracies(self) -> dict[str, float]:
        """Row name to accuracy in percent."""
        correct = self.predictions == self.labels
        return {row: 100 * float(share) for row, share in zip(self.rows, correct.mean(axis=1))}

    def save(self, folder: Path) -> None:
        """Write predictions.npz and provenance.json."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / "predictions.npz", rows=np.array(self.rows), predictions=self.predictions, labels=self.labels
        )
        (folder / "provenance.json").write_text(json.dumps(self.provenance, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Table":
        with np.load(folder / "predictions.npz") as stored:
            rows, predictions, labels = tuple(stored["rows"].tolist()), stored["predictions"], stored["labels"]
        return cls(rows, predictions, labels, json.loads((folder / "provenance.json").read_text()))


@torch.inference_mode()
def predict(
    classifier: Classifier,
    images: torch.Tensor,
    row: Row,
    device: torch.device,
    seed: int,
    progress: tqdm | None = None,
) -> np.ndarray:
    """Class of each of `images`, uint8 (N, 32, 32, 3), under `row`: uint8 (N,). `seed` decides the noise."""
    generator = torch.Generator(device=device).manual_seed(seed)
    predictions = []
    for batch in images.split(BATCH_SIZE):
        pixels = batch.to(device).permute(0, 3, 1, 2).float() / 255
        predictions.append(classifier(row.apply(pixels, generator)).argmax(dim=1).cpu())
        if progress is not None:
            progress.update(len(batch))
    return torch.cat(predictions).numpy().astype(np.uint8)


def evaluate(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
    seed: int,
    provenance: dict,
) -> Table:
    """The whole table of one classifier."""
    with tqdm(total=len(ROWS) * len(images), unit="image", desc="evaluating") as progress:
        predictions = np.stack([predict(classifier, images, row, device, seed, progress) for row in ROWS])
    return Table(tuple(row.name for row in ROWS), predictions, labels.numpy().astype(np.uint8), provenance)
