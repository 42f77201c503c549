"""What training and evaluation alike record of how a result came about. Records are published."""

import os
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "pillow", "scipy")

HEAD_KEPT, HEAD_REORDERED, HEAD_NEW = "kept", "reordered", "new"  # what became of the head that a run started with

LAUNCHER_OPTIONS = {  # of accelerate, to what training.json calls them
    "num_processes": "processes",
    "mixed_precision": "mixed_precision",
    "dynamo_backend": "dynamo_backend",
}


CHECKOUT = Path(__file__).resolve().parents[1]
OWN_FOLDERS = ("build", "examples", "releases", "train")  # of the checkout: everybody has them
PATH_OPTIONS = ("--output_dir", "--output", "--classes", "--cifar10c")  # whose value is never a Hub id


def looks_local(name: str) -> bool:
    """Tell whether `name` means a file or folder here and no Hub id, be it there or not.

    It does if it is there, begins as a path does, has two slashes or more, or the folder that it would be in is there.
    """
    begins = name.startswith((".", "~", os.sep)) or Path(name).is_absolute()
    within = "/" in name and os.path.isdir(os.path.dirname(name))
    return begins or within or name.count("/") > 1 or os.path.lexists(name)


def public_name(name: str) -> str:
    """Return a Hub id as it is, and of a path its last part."""
    return (_absolute(name).name or "root") if looks_local(name) else name


def public_argument(argument: str) -> str:
    """Return what records tell of an argument: of a path its last part, or its place in the project's own folders."""
    return _public_path(argument) if looks_local(argument) else argument


def _public_path(argument: str) -> str:
    path = _absolute(argument)
    own = path.is_relative_to(CHECKOUT) and path.relative_to(CHECKOUT).parts[:1] in {(name,) for name in OWN_FOLDERS}
    return path.relative_to(CHECKOUT).as_posix() if own else path.name or "root"


def _absolute(name: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(name)))


def without_options(parts: list[str], *options: str) -> list[str]:
    """The parts of a command less these options and the one value of each."""
    return [part for before, part in zip(["", *parts], parts) if part not in options and before not in options]


def separated(arguments: list[str]) -> list[str]:
    """Return the arguments with --option=value as two, the option and its value."""
    parts = []
    for argument in arguments:
        parts.extend(argument.split("=", 1) if argument.startswith("--") else [argument])
    return parts


def command_again(program: str, arguments: list[str]) -> str:
    """The command that does the whole run again: without resuming and pushing it, and with paths made public."""
    parts = without_options(separated(arguments), "--hub_model_id", "--hub_tag")
    parts = [part for part in parts if part not in ("--resume", "--push_to_hub", "--hub_private_repo")]
    public = [
        _public_path(part) if before in PATH_OPTIONS else public_argument(part)
        for before, part in zip(["", *parts], parts)
    ]
    return f"{program} {shlex.join(public)}"


def training_command(training: dict[str, Any]) -> str:
    """The command that does a run again, with the launcher's options that it ran under."""
    machine = training["hardware"]
    options = ["--cpu"] if machine["device"] == "cpu" else []
    options += [f"--{name} {machine[key]}" for name, key in LAUNCHER_OPTIONS.items()]
    command: str = training["command"]
    return command.replace("accelerate launch", f"accelerate launch {' '.join(options)}", 1)


def speed_of(epochs: list[dict[str, Any]], flops_per_image: int, processes: int) -> tuple[float, float]:
    """Images a second over entries of training.json's `epochs`, and the share of what the processes could do."""
    images = sum(sum(epoch["operators"].values()) for epoch in epochs)
    possible = processes * sum(epoch["seconds"] * epoch["peak_flops"] for epoch in epochs)
    return images / sum(epoch["seconds"] for epoch in epochs), images * flops_per_image / possible


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """The processor as /proc/cpuinfo names it on Linux, else as Python does."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
