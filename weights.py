"""Loading weights, and naming them by their hash."""

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from nula.modeling_nula import NulaForImageClassification


def load_model(
    name: str | Path, kind: type = NulaForImageClassification, revision: str | None = None
) -> PreTrainedModel:
    """The model in a folder or Hub repository, float32 and in eval mode, with every weight accounted for.

    `kind` is the class, or an Auto class of transformers, whose `from_pretrained` loads it.

    Raises:
        ValueError: the weights are not those of this architecture. transformers only warns, and fills what is missing
            with random numbers.
    """
    model, report = kind.from_pretrained(name, output_loading_info=True, dtype=torch.float32, revision=revision)
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        raise ValueError(f"the weights of {name} do not fit the model: {problems}.")
    return model.eval()


def weights_sha256(name: str | Path) -> str:
    """SHA-256 of model.safetensors in a folder or Hub repository; OSError where it is not one such file."""
    return hashlib.sha256(Path(cached_file(str(name), "model.safetensors")).read_bytes()).hexdigest()
