"""What an image processor does to pixels, done differentiably: resize, centre crop, normalisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from nula.data import SIDE, to_pixels
from nula.image_processing_nula import RESAMPLING, normalize

BYTES_OFF = 2.5  # of 255: how far rounding between a processor's steps may lead from the same without rounding
CHECKED_SIZES = ((32, 32), (40, 56), (57, 41))  # (height, width) of the images by which a processor is checked

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Processing:
    """The way from pixels in [0, 1] of any size to a model's input.

    Args:
        resize: (height, width), or the length of the shorter side; None where images keep their size.
        mode: of the resize, "bilinear" or "bicubic", with antialiasing.
        crop: (height, width) that are kept of the middle; None where nothing is cut off.
        crop_start: where the kept part begins, of the length that is cut off.
        mean, std: of each channel; None where pixels are not normalised.
    """

    resize: Size | int | None = None
    mode: str = "bilinear"
    crop: Size | None = None
    crop_start: Callable[[int], int] = lambda cut: cut // 2
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @property
    def size(self) -> Size:
        """(height, width) of the images that stay as they are; 32x32 where all do."""
        size = self.crop or self.resize or SIDE
        return (size, size) if isinstance(size, int) else size

    def resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize and crop pixels (B, 3, H, W) in [0, 1] to the model's size."""
        size = self._target(pixels.shape[-2], pixels.shape[-1])
        if size != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode=self.mode, align_corners=False, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = (self.crop_start(length - kept) for length, kept in zip(pixels.shape[-2:], self.crop))
            pixels = pixels[..., top : top + self.crop[0], left : left + self.crop[1]]
        return pixels

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise pixels of the model's size."""
        return pixels if self.mean is None or self.std is None else normalize(pixels, self.mean, self.std)

    def _target(self, height: int, width: int) -> Size:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            shorter = min(height, width)
            return tuple(  # type: ignore[return-value]
                self.resize if side == shorter else int(self.resize * side / shorter) for side in (height, width)
            )
        return self.resize


def processing_of(processor: Any) -> Processing:
    """Return what an image processor of transformers does, without its rounding to bytes.

    Raises:
        ValueError: on images of random bytes it does not give what the processor itself gives, but for rounding: the
            processor does something that is not known here.
    """
    config = getattr(processor, "data_config", None)
    processing = _of_transformers(processor) if config is None else _of_timm(config)
    generator = torch.Generator().manual_seed(0)
    rounding = BYTES_OFF / 255 / min(processing.std or [1.0])
    for height, width in CHECKED_SIZES:
        # Far from black and white, where a bicubic resize would overshoot and be clipped between its two passes.
        image = torch.randint(64, 192, (height, width, 3), generator=generator, dtype=torch.uint8)
        expected = processor(Image.fromarray(image.numpy()), return_tensors="pt").pixel_values
        given = processing.normalized(processing.resized(to_pixels(image.unsqueeze(0))))
        if given.shape != expected.shape or (given - expected).abs().max() > rounding:
            raise ValueError(
                f"{type(processor).__name__} does more than resize (bilinear or bicubic), crop, scale to [0, 1] and "
                "normalise, or does it otherwise; give the classifier as a Python function."
            )
    return processing


def _of_transformers(processor: Any) -> Processing:
    resize = _size(processor.size) if getattr(processor, "do_resize", False) else None
    cropped = _size(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    crop = (cropped, cropped) if isinstance(cropped, int) else cropped
    crop_share = getattr(processor, "crop_pct", None)
    if isinstance(resize, int) and crop_share:  # ConvNeXT's: below 384 a larger image, of which the middle is taken
        crop = (resize, resize)
        resize = int(resize / crop_share) if resize < 384 else crop
        crop = crop if isinstance(resize, int) else None
    normalized = getattr(processor, "do_normalize", False)
    return Processing(
        resize=resize,
        mode=RESAMPLING.get(getattr(processor, "resample", Image.Resampling.BILINEAR), "bilinear"),
        crop=crop,
        mean=tuple(processor.image_mean) if normalized else None,
        std=tuple(processor.image_std) if normalized else None,
    )


def _of_timm(config: dict[str, Any]) -> Processing:
    """What timm's evaluation transform does by its data configuration (timm.data.create_transform)."""
    height, width = config["input_size"][-2:]
    share = config.get("crop_pct") or 0.875  # timm's default
    scaled = int(height / share), int(width / share)
    squashed = config.get("crop_mode") == "squash"  # both sides, whatever the image's shape
    return Processing(
        resize=scaled[0] if scaled[0] == scaled[1] and not squashed else scaled,
        mode=config["interpolation"],
        crop=(height, width),
        crop_start=lambda cut: round(cut / 2),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _size(size: Any) -> Size | int | None:
    """(height, width), or the length of the shorter side, of a processor's size; None if it has neither."""
    if size is None:
        return None
    if size.get("shortest_edge"):
        return int(size["shortest_edge"])
    return (int(size["height"]), int(size["width"])) if size.get("height") else None
