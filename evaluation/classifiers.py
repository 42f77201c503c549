"""Any image classifier of transformers as a function of pixels in [0, 1] at 32x32."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from nula.configuration_nula import CIFAR10_LABELS, NulaConfig
from nula.data import SIDE
from nula.image_processing_nula import RESAMPLING, NulaImageProcessor, normalize
from nula.records.weights import found, load_model

BYTES_OFF = 2.5  # of 255: how far rounding between a processor's steps may lead from the same without rounding


class PixelClassifier(torch.nn.Module):
    """A model with its preprocessing inside: pixels (B, 3, 32, 32) in [0, 1] to logits (B, 10), differentiably."""

    def __init__(self, model: torch.nn.Module, prepare: Callable[[torch.Tensor], torch.Tensor], order: list[int]):
        super().__init__()
        self.model, self.prepare, self.order = model, prepare, order

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        inputs = self.prepare(pixels).contiguous(memory_format=torch.channels_last)
        return self.model(inputs).logits[:, self.order]


def load_classifier(name: str, device: torch.device) -> PixelClassifier:
    """The model `name`, in eval mode.

    `name` is a folder or Hub id of a NULA or of any other `AutoModelForImageClassification` of ten classes, whose own
    processor says how large its input is and how it is normalised. The logits are in CIFAR-10's order of classes where
    the model's names are those ten, else in the model's own. No code from a Hub is run.

    Raises:
        OSError: there is no such folder or repository, or it holds no model.
        ValueError: another number of classes, or a processor that does something unknown here.
    """
    # AutoConfig would ask for trust_remote_code before it told that a folder holds a NULA.
    with found(name):
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    if model_type == NulaConfig.model_type:
        model, processor = load_model(name), NulaImageProcessor.from_pretrained(name)
    else:
        model = load_model(name, AutoModelForImageClassification)
        processor = AutoImageProcessor.from_pretrained(name)
    if model.config.num_labels != len(CIFAR10_LABELS):
        raise ValueError(
            f"{name} has {model.config.num_labels} classes, must have the {len(CIFAR10_LABELS)} of CIFAR-10."
        )
    classifier = PixelClassifier(model, preprocessing(processor), class_order(model.config))
    return classifier.eval().to(device, memory_format=torch.channels_last)


def class_order(config: PreTrainedConfig) -> list[int]:
    """Index among the model's classes of each of CIFAR-10's."""
    names = {str(name).lower(): index for index, name in config.id2label.items()}
    if set(names) == set(CIFAR10_LABELS):
        return [names[label] for label in CIFAR10_LABELS]
    return list(range(len(CIFAR10_LABELS)))


def preprocessing(processor: BaseImageProcessor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The processor's resize, centre crop and normalisation on pixels in [0, 1], without its rounding to bytes.

    Raises:
        ValueError: on an image of random bytes it does not give what the processor itself gives, but for rounding: the
            processor does something that is not known here.
    """
    size, crop = _sizes(processor)
    mode = RESAMPLING.get(getattr(processor, "resample", None))
    normalized = getattr(processor, "do_normalize", False)

    def prepare(pixels: torch.Tensor) -> torch.Tensor:
        if size and mode and size != tuple(pixels.shape[2:]):
            pixels = F.interpolate(pixels, size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
        if crop:
            top, left = ((length - cropped) // 2 for length, cropped in zip(pixels.shape[2:], crop))
            pixels = pixels[:, :, top : top + crop[0], left : left + crop[1]]
        return normalize(pixels, processor.image_mean, processor.image_std) if normalized else pixels

    image = torch.randint(256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = processor(image.numpy(), return_tensors="pt").pixel_values
    given = prepare(image.permute(2, 0, 1).unsqueeze(0).float() / 255)
    rounding = BYTES_OFF / 255 / min(processor.image_std if normalized else [1.0])
    if given.shape != expected.shape or (given - expected).abs().max() > rounding:
        raise ValueError(
            f"{type(processor).__name__} does more than resize (bilinear or bicubic), crop, scale to [0, 1] and "
            "normalise, or does it otherwise; give the classifier as a Python function."
        )
    return prepare


def _sizes(processor: BaseImageProcessor) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(height, width) to resize a square image to, and to crop it to; None for a step that is not done."""

    def pair(size) -> tuple[int, int] | None:
        if size is None or not (size.get("shortest_edge") or size.get("height")):
            return None
        return (size["shortest_edge"],) * 2 if size.get("shortest_edge") else (size["height"], size["width"])

    size = pair(processor.size) if getattr(processor, "do_resize", False) else None
    crop = pair(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    crop_pct = getattr(processor, "crop_pct", None)
    if size and crop_pct and size[0] < 384:  # ConvNeXT's processor: a larger image, of which the middle is taken
        crop = size
        size = tuple(int(length / crop_pct) for length in size)
    return size, crop
