"""The model that classifies, on the device and in the numbers that were asked for."""

import argparse
import os
from importlib import import_module

import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from nula.image_processing_nula import NulaImageProcessor
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.reading_nula import PLUGINS
from nula.records import weights

DECODERS = {"HEIF": "pillow_heif.HeifImagePlugin", "JXL": "pillow_jxl"}  # modules that register them with Pillow


def register_decoders(formats: tuple[str, ...]) -> None:
    """Register the decoders of those of `formats` that need a package of their own.

    Raises:
        ValueError: the package is not installed, or Pillow has no decoder of that name.
    """
    Image.init()
    for name in DECODERS.keys() & set(formats):
        try:
            import_module(DECODERS[name])
        except ImportError as error:
            package, *_ = PLUGINS[name]
            raise ValueError(f"--formats {name} needs a decoder: pip install {package} ({error}).") from error

    for name in formats:
        if name not in Image.OPEN:
            raise ValueError(f"--formats {name}: Pillow has no such format; its names count, as HEIF for .heic files.")


def devices() -> list[str]:
    """Return the names of the devices of this machine: "cpu", and "cuda:0" or the like for each accelerator."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if kind is not None else 0
    return ["cpu", *(f"{kind}:{index}" for index in range(count))]


def device_called(name: str) -> torch.device:
    """Return the device that `name` means, such as "cuda" or "cuda:1".

    Raises:
        ValueError: this machine has none.
    """
    known = devices()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not {str(device), f"{device}:0"} & set(known):
        raise ValueError(f"--device {name}: there is no such device; there are {', '.join(known)}.")
    return device


def load_pipe(arguments: argparse.Namespace) -> NulaImageClassificationPipeline:
    """Load the pipeline that the arguments of `nula classify` ask for.

    Raises:
        ValueError: there is no such model or device.
    """
    disable_progress_bar()  # of loading the weights
    device = None if arguments.device is None else device_called(arguments.device)
    name = os.path.expanduser(arguments.model)  # which a shell leaves to us in --model=~/folder
    if os.path.isfile(name):
        raise ValueError(f"--model {arguments.model} is a file; give the folder that it is in, or a Hub id.")
    if arguments.revision is not None and os.path.isdir(name):
        raise ValueError(f"--revision is of a Hub id; --model {arguments.model} is a folder.")
    try:
        model = weights.load_model(name, revision=arguments.revision).to(getattr(torch, arguments.dtype))
        processor = NulaImageProcessor.from_pretrained(name, revision=arguments.revision)
        settings = {"calibrated": True} if arguments.calibrated else {}
        return NulaImageClassificationPipeline(model=model, image_processor=processor, device=device, **settings)
    except (OSError, ValueError) as error:
        raise ValueError(f"{arguments.model} cannot be loaded: {error}") from error
