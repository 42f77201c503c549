"""The files of a finished run, which make its folder a release: training.json and release.json."""

import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator

from nula.data import SIDE, DataSource, Split
from nula.records.cifar10 import is_cifar10
from nula.records.provenance import (
    HEAD_NEW,
    command_again,
    device_name,
    library_versions,
    public_argument,
    public_name,
    separated,
    without_options,
)
from nula.records.release import LOCAL, Release, Results
from nula.records.weights import weights_sha256
from nula.train.net import architecture
from nula.train.recipe import Version
from nula.train.run import RunSettings, dynamo_backend
from nula.train.start import Parent, Start
from nula.train.validation import HeldOut, Validation


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Args:
        source: where they come from.
        train: that it is trained on.
        held_out: of the same split, that it is measured on at the end.
    """

    source: DataSource
    train: Split
    held_out: HeldOut | None = None


@dataclass(frozen=True)
class RunInputs:
    """What a run is made of.

    Args:
        version: that its script trains; `settings.recipe` may differ from its recipe.
        settings: of the run.
        start: the model that it started with, and where the weights came from.
        data: the images.
        temperature_of: SHA-256 of the weights whose temperature the model is given, if it is.
    """

    version: Version
    settings: RunSettings
    start: Start
    data: TrainingData
    temperature_of: str | None = None

    @property
    def changed_fields(self) -> list[str]:
        """Settings in which its recipe differs from the version's."""
        own, given = asdict(self.version.recipe), asdict(self.settings.recipe)
        return [field for field, value in own.items() if given[field] != value]

    @property
    def is_as_published(self) -> bool:
        """Whether it is the whole of the version's recipe on the training images of CIFAR-10."""
        whole = not self.changed_fields and self.settings.max_steps is None
        return whole and is_cifar10({"sha256": self.data.train.fingerprint}, "train")


def training_record(
    inputs: RunInputs, log: dict[str, Any], accelerator: Accelerator, validation: Validation | None = None
) -> dict[str, Any]:
    """Return what training.json says of a run whose weights have been saved, and measured where images are held out."""
    settings, model, parent = inputs.settings, inputs.start.model, inputs.start.parent
    source, data, held_out = inputs.data.source, inputs.data.train, inputs.data.held_out
    return {
        "weights_sha256": weights_sha256(settings.output_dir),
        "recipe": asdict(settings.recipe),
        "architecture": architecture(model.config),
        "command": command_again("accelerate launch", _arguments(settings)),
        "initial_weights_sha256": None if parent is None else parent.weights_sha256,
        "parent_option": None if parent is None else parent.option,
        "head": None if parent is None else parent.head,
        "seed": settings.seed,
        "max_steps": settings.max_steps,
        "parameters": model.num_parameters(),
        "dataset": source.record(source.train_split, data) | {"image_size": data.images[0].shape[0]},
        **log,
        "hardware": _hardware(accelerator),
        "versions": library_versions(),
        "temperature": model.config.calibration_temperature,
        **({"temperature_of": inputs.temperature_of} if inputs.temperature_of else {}),
        **({} if held_out is None else {"held_out": held_out.record()}),
        **({} if validation is None else {"validation": validation.accuracies}),
    }


def release_of(inputs: RunInputs, hub_id: str | None) -> Release:
    """Return the release that the run's folder holds.

    It has the name of the recipe; one that was fine-tuned from a release of that very name has its folder's.
    """
    version, folder, parent = inputs.version, inputs.settings.output_dir, inputs.start.parent
    name = version.recipe.name
    if parent is not None and parent.name == name:
        own = folder.resolve().name
        name = own if own != parent.name else f"{name}-tuned"
    return Release(
        name=name,
        folder=folder,
        results=Results(folder / "results"),
        parent=None if parent is None else parent.name,
        hub_id=hub_id or f"{LOCAL}/nula-{name}",
        published=version.published if inputs.is_as_published else None,
        summary=_summary(inputs, name),
        color=version.color,
        script=version.script,
        recipe=asdict(inputs.settings.recipe),
    )


def _arguments(settings: RunSettings) -> list[str]:
    """The command line of this process; with the number of epochs in place of minutes that they were fitted to."""
    if settings.budget is None:
        return sys.argv
    parts = without_options(separated(sys.argv), "--minutes")
    if "--recipe" not in parts:
        parts.append("--recipe")
    last = len(parts) - 1 - parts[::-1].index("--recipe")  # of several, the one that counts
    parts.insert(last + 1, f"cosine_epochs={settings.recipe.cosine_epochs}")
    return parts


def _summary(inputs: RunInputs, name: str) -> str:
    """The version's own sentence where it is true of the run, else one on what was done."""
    version, settings, parent, data = inputs.version, inputs.settings, inputs.start.parent, inputs.data.train
    if inputs.is_as_published and _is_called(version.parent, parent):
        return version.summary
    begin = "trained from scratch" if parent is None else f"fine-tuned from {parent.name}"
    parts = [
        f"{name} is {begin} on {len(data.labels):,} images of {public_name(inputs.data.source.dataset)}, "
        f"of {len(data.names)} classes"
    ]
    side = data.images[0].shape[0]
    if side != SIDE:
        parts.append(f"at {side}×{side} pixels")
    if parent is not None and parent.head == HEAD_NEW:
        parts.append("with a new head")
    if inputs.changed_fields:
        changed = " and another ".join(inputs.changed_fields)
        parts.append(f"by the recipe of {version.recipe.name} with another {changed}")
    if settings.max_steps is not None:
        parts.append(f"for at most {settings.max_steps:,} steps")
    return ", ".join(parts) + "."


def _is_called(name: str | None, parent: Parent | None) -> bool:
    """Whether a parent, or its repository (as "nula-cifar10-robust-v0" is "v0"), is called `name`; both may be None."""
    return (None if parent is None else parent.name.rpartition("-")[2]) == name


def _hardware(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    return {
        "device": device.type,
        "name": device_name(device),
        "processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": dynamo_backend(accelerator),
        "accelerate": _variables(),
    }


def _variables() -> dict[str, str]:
    """What was asked of accelerate by variables of the environment, which its launcher sets, too."""
    prefix = "ACCELERATE_"
    asked = {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefix)}
    return {name.removeprefix(prefix).lower(): public_argument(value) for name, value in asked.items()}
