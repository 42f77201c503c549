"""The state of a run on disk: always one that is whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from safetensors import SafetensorError

IDENTITY = "identity.json"
COPIES = 3  # of the training state on disk at the worst moment, the released weights included


@contextmanager
def only_writer(output_dir: Path) -> Iterator[None]:
    """Keep other runs out of `output_dir` meanwhile; FileExistsError where one is at work there."""
    lock = FileLock(output_dir / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(
            f"another run is at work in {output_dir}: stop it, wait for its end, or give another --output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_folder(output_dir: Path, state_bytes: int, resume: bool) -> None:
    """Make sure before a run that it can leave its results in `output_dir`, and that none are lost there.

    Raises:
        FileExistsError: the folder holds a checkpoint or weights, and the run does not go on from them.
        OSError: the folder cannot be made or written to, or its disk has no room for the run.
    """
    resumable = any((output_dir / name).exists() for name in ("checkpoint", "checkpoint.old"))
    if not resume and (resumable or (output_dir / "model.safetensors").exists()):
        raise FileExistsError(
            f"{output_dir} holds a run already: {'go on from its checkpoint with --resume, ' if resumable else ''}"
            "delete the folder, or give another --output_dir."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / ".writable"
        probe.write_bytes(b"0")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to --output_dir {output_dir}: {error}; give another folder.") from error
    copies = COPIES - 1 if resume else COPIES
    needed, free = copies * state_bytes, shutil.disk_usage(output_dir).free
    if free < needed:
        raise OSError(
            f"the disk of --output_dir {output_dir} has {free / 2**20:.0f} MiB free, and a run needs "
            f"{needed / 2**20:.0f} MiB; make room or give another folder."
        )


def last_checkpoint(checkpoint: Path) -> Path | None:
    """`checkpoint`, or the one before it if a run was killed just as it swapped the two; None if there is neither."""
    return next((folder for folder in (checkpoint, checkpoint.with_name("checkpoint.old")) if folder.is_dir()), None)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, identity: dict[str, Any]) -> None:
    """Go on from the last checkpoint.

    Raises:
        ValueError: it is of a run with another `identity`.
        OSError: there is none, or it cannot be read.
    """
    folder = last_checkpoint(checkpoint)
    if folder is None:
        raise FileNotFoundError(f"there is no checkpoint at {checkpoint}.")
    with _readable(folder):
        saved = json.loads((folder / IDENTITY).read_text())
    for name, value in json.loads(json.dumps(identity)).items():
        if saved.get(name) != value:
            raise ValueError(
                f"this is another run than that of the checkpoint {folder}: {name} is {value!r}, was "
                f"{saved.get(name)!r}."
            )
    with _readable(folder):
        accelerator.load_state(str(folder))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Tell of a damaged checkpoint in one way, which has a name of its own in each library."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, UnpicklingError, SafetensorError) as error:
        raise OSError(
            f"the checkpoint {folder} cannot be read ({type(error).__name__}: {error}); if it is damaged, begin anew, "
            "without --resume, in another --output_dir."
        ) from error


def save_checkpoint(accelerator: Accelerator, checkpoint: Path, identity: dict[str, Any]) -> None:
    """Write beside the old checkpoint and swap: a run that dies while saving keeps one that is whole.

    `identity` is what must not change when the run is resumed. If any process fails to write, as on a full disk, all
    raise OSError, which says what checkpoint is left.
    """
    written, previous = checkpoint.with_name("checkpoint.new"), checkpoint.with_name("checkpoint.old")
    if accelerator.is_main_process:
        shutil.rmtree(written, ignore_errors=True)  # what a killed run left
    accelerator.wait_for_everyone()
    failure = None
    try:
        accelerator.save_state(str(written))
        if accelerator.is_main_process:
            (written / IDENTITY).write_text(json.dumps(identity))
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has a name of its own in each library
        failure = str(error)
    failures = [message for message in gather_object([failure]) if message]
    if failures:
        if accelerator.is_main_process:
            shutil.rmtree(written, ignore_errors=True)
        whole = checkpoint.is_dir() or previous.is_dir()
        left = "the checkpoint before it is whole; resume from it" if whole else "there is none before it"
        raise OSError(f"the checkpoint could not be written to {written}: {failures[0]}; {left}.")
    if accelerator.is_main_process:
        if checkpoint.exists():
            shutil.rmtree(previous, ignore_errors=True)
            checkpoint.rename(previous)
        written.rename(checkpoint)
        shutil.rmtree(previous, ignore_errors=True)
    accelerator.wait_for_everyone()
