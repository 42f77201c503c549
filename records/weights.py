"""Loading weights, and naming them by their hash."""

import hashlib
import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file

from nula.modeling_nula import NulaForImageClassification


def load_model(name: str | Path, kind: Any = NulaForImageClassification, revision: str | None = None) -> Any:
    """Load the model in a folder or Hub repository, float32 and in eval mode, with every weight accounted for.

    `kind` is the class, or an Auto class of transformers, whose `from_pretrained` loads it. Weights that the model has
    no use for are warned of.

    Raises:
        OSError: there is no such folder or repository, or it holds no model.
        ValueError: the weights are damaged, or not those of this architecture: where some are missing, transformers
            only warns, and fills in random numbers.
    """
    try:
        with found(name):
            report_all = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which the report then names
            report_all |= {"trust_remote_code": False}  # None would ask on a terminal
            model, report = kind.from_pretrained(name, **report_all, dtype=torch.float32, revision=revision)
    except (SafetensorError, RuntimeError) as error:  # a file cut short
        raise ValueError(f"the weights of {name} cannot be loaded: {error}") from error
    spare = sorted(report.get("unexpected_keys", ()))
    problems = {problem: names for problem, names in report.items() if names and problem != "unexpected_keys"}
    if problems:
        told = "; ".join(f"{problem.replace('_', ' ')}: {_few(names)}" for problem, names in problems.items())
        raise ValueError(f"the weights of {name} do not fit the model: {told}.")
    if spare:
        warnings.warn(f"the weights of {name} hold more than the model has: {_few(spare)}.", stacklevel=2)
    return model.eval()


def _few(names: Collection[Any]) -> str:
    shown = ", ".join(sorted(map(str, names))[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def class_names(model: PreTrainedModel) -> list[str]:
    """Return the names of a model's classes, in the order of its logits."""
    names: dict[int, str] = model.config.id2label  # type: ignore[assignment]  # whose keys transformers makes integers
    return [str(names[index]) for index in range(len(names))]


@contextmanager
def found(name: str | Path) -> Iterator[None]:
    """Add to an OSError that `name` is no folder here, which transformers takes for a Hub id without a word."""
    try:
        yield
    except OSError as error:
        if Path(name).is_dir():
            raise
        raise OSError(f"there is no folder {name} here, and as a Hub id it gives: {error}") from error


def weights_sha256(name: str | Path, revision: str | None = None) -> str:
    """Return the SHA-256 of the weights in a folder or Hub repository: of their file, or of all shards in order.

    Raises:
        OSError: it holds neither model.safetensors nor pytorch_model.bin, whole or in shards.
    """
    file = _weights_file(str(name), revision)
    parts = sorted(set(json.loads(file.read_text())["weight_map"].values())) if file.suffix == ".json" else [file.name]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_stored(str(name), part, revision).read_bytes())
    return digest.hexdigest()


def _stored(name: str, file: str, revision: str | None) -> Path:
    """The path of a file in a folder or Hub repository; OSError where there is none."""
    return Path(str(cached_file(name, file, revision=revision)))


def _weights_file(name: str, revision: str | None) -> Path:
    errors = []
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        try:
            return _stored(name, file, revision)
        except OSError as error:
            errors.append(error)
    raise errors[0]
