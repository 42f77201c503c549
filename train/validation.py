"""Images held out of the training split, on which a run is measured at its end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nula.data import STRATIFIED, Split, has_shares, stratified
from nula.evaluation.classifiers import load_classifier
from nula.evaluation.measuring import evaluate, table_rows
from nula.records.cifar10 import is_cifar10
from nula.records.statistics import fit_temperature
from nula.records.table import row_title
from nula.train.start import Parent

LAST = "last"  # how images are chosen, or stratified
SEED = 0  # of a stratified choice, whatever the run's: trainings from several seeds are measured on the same images


@dataclass(frozen=True)
class Validation:
    """What was measured on images held out.

    Args:
        accuracies: in percent, under each row.
        temperature: that fits the clean ones best, see `fit_temperature`.
    """

    accuracies: dict[str, float]
    temperature: float


@dataclass(frozen=True)
class HeldOut:
    """Images that a run is not trained on.

    Args:
        images: with their labels.
        choice: "last", of the split, or "stratified".
        of_cifar10: whether they are of the training split of CIFAR-10.
    """

    images: Split
    choice: str
    of_cifar10: bool

    def record(self) -> dict[str, Any]:
        """Return what training.json tells of the choice."""
        told = {"images": len(self.images.labels), "sha256": self.images.fingerprint, "choice": self.choice}
        return told | ({"seed": SEED} if self.choice == STRATIFIED else {})

    def line(self) -> str:
        """Say which images they are."""
        how = {
            LAST: "the last of the split",
            STRATIFIED: f"of each class its share, drawn by seed {SEED}, as the last ones are not",
        }
        return f"held out of training, and measured on: {len(self.images.labels):,} images, {how[self.choice]}."

    def measure(self, folder: Path, accelerator: Accelerator) -> Validation:
        """Measure the model in `folder` under each row, by all processes together."""
        classifier = load_classifier(str(folder), self.images.names, accelerator.device)
        table = evaluate(classifier, self.images, table_rows(seed=0), accelerator, provenance={}, keep_logits=True)
        accuracies = {row_title(row, self.of_cifar10): round(value, 2) for row, value in table.accuracies().items()}
        clean = table.row(table.rows[0])
        assert clean.logits is not None
        return Validation(accuracies, round(fit_temperature(clean.logits, clean.labels), 4))


def hold_out(split: Split, count: int) -> tuple[Split, HeldOut]:
    """Return the images of `split` to train on, and `count` others to measure on.

    These are the last of the split where each class has its share of them, as it has in CIFAR-10 and in shuffled data,
    and else a stratified choice: in a folder of images, which is sorted by class, the last are of one class.

    Raises:
        ValueError: one of the two would lack a class, or be empty.
    """
    total = len(split.labels)
    if not 0 < count < total:
        raise ValueError(f"cannot hold out {count} of {total} images; give 1 to {total - 1}.")
    last = torch.arange(total - count, total)
    choice = LAST if has_shares(split.labels, last) else STRATIFIED
    try:
        indices = last if choice == LAST else stratified(split.labels, count, SEED)
    except ValueError as error:
        raise ValueError(f"--validation_images {count}: {error}") from error
    kept, images = split.part_off(indices)
    lost = sorted(set(split.labels.tolist()) - set(kept.labels.tolist()))
    if lost:
        raise ValueError(f"--validation_images {count} leave no image of class {split.names[lost[0]]!r} to train on.")
    return kept, HeldOut(images, choice, is_cifar10({"sha256": split.fingerprint}, "train"))


def check_parent(parent: Parent, data: Split) -> None:
    """Raise ValueError unless the parent's record tells that it was trained on the images of `data` alone."""
    record = Path(parent.source) / "training.json"
    if not record.is_file() or json.loads(record.read_text())["dataset"]["sha256"] != data.fingerprint:
        raise ValueError(
            f"{parent.option} {parent.source} is not known to be trained without the images of --validation_images; "
            "train it with the same option, and give its folder."
        )


def known_temperature(folder: Path) -> tuple[float, str]:
    """Return the temperature that a run with --validation_images fitted, and the SHA-256 of its weights.

    Raises:
        ValueError: the folder is of no such run.
    """
    file = folder / "training.json"
    record = json.loads(file.read_text()) if file.is_file() else {}
    if "held_out" not in record or record.get("temperature") is None:
        raise ValueError(f"--temperature_of {folder} is no folder of a run with --validation_images.")
    return float(record["temperature"]), str(record["weights_sha256"])
