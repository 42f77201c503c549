"""From any image to NULA's input: RGB, 32x32, antialiased resize, scaled to [-1, 1]."""

import contextlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
RESAMPLING = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
MODES_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def normalize(
    pixels: torch.Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD
) -> torch.Tensor:
    """(pixels − mean) / std per channel: (..., 3, H, W) in [0, 1] to the model's input."""
    mean, std = (
        torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1) for values in (mean, std)
    )
    return (pixels - mean) / std


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB image as a viewer shows it: EXIF orientation applied, alpha over white, 16-bit gray scaled to 8.

    Modes "I" and "I;16" are taken as 16-bit gray, 0..65535, and mode "F" as [0, 1].

    Raises:
        ValueError: no pixels, a mode "I" image beyond 0..65535 or a mode "F" image beyond [0, 1].
        OSError: the file behind the image is truncated or broken.
    """
    if 0 in image.size:
        raise ValueError(f"an image must have at least one pixel, got size {image.size}.")
    # Unreadable metadata is no reason to refuse the pixels.
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        # PIL clips these to 0..255 instead of scaling them. Mode "I" is how it opens some 16-bit files.
        values, top = np.asarray(image), 1.0 if image.mode == "F" else 65535
        _check_range(values, top)
        transparent = values == image.info.get("transparency", -1)
        return Image.fromarray(np.where(transparent, 255, np.round(values * (255 / top))).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in MODES_WITH_ALPHA or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _check_range(values: np.ndarray | torch.Tensor, top: float) -> None:
    low, high = values.min().item(), values.max().item()
    if low != low:  # numpy's and torch's minimum of values with a NaN among them is NaN
        raise ValueError(f"values must lie in [0, {top:g}], got NaN.")
    if low < 0 or high > top:
        raise ValueError(f"values must lie in [0, {top:g}], got {low:.9g} to {high:.9g}.")


class NulaImageProcessor(BaseImageProcessor):
    """Prepares PIL images, numpy arrays and torch tensors, alone, in lists or as batched arrays.

    An array is (H, W, 3) or (3, H, W), with a leading batch axis if it is a batch; integers mean 0..255, floating-point
    numbers [0, 1]. Where both orders are possible, channels come first unless `input_data_format` says "channels_last".
    Arrays of the target size and whole batches take a vectorised path.

    Args:
        do_resize, size, resample: antialiased resize to `size`, by PIL's BILINEAR (2) or BICUBIC (3).
        do_rescale, rescale_factor: multiply integer pixel values by this; floating-point pixels are in [0, 1] already.
        do_normalize, image_mean, image_std: subtract and divide, per channel.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (the base class's own form)

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        size = {"height": 32, "width": 32} if size is None else dict(size)
        if set(size) != {"height", "width"} or not all(isinstance(side, int) and side > 0 for side in size.values()):
            raise ValueError(
                f'size must be {{"height": pixels, "width": pixels}} with positive integers, got {size!r}.'
            )
        if resample not in RESAMPLING:
            raise ValueError(f"resample must be 2 (BILINEAR) or 3 (BICUBIC), got {resample!r}.")
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if len(values) != 3:
                raise ValueError(f"{name} must have one value for each of R, G, B, got {values!r}.")
        if min(image_std) <= 0:
            raise ValueError(f"image_std must be positive, got {image_std!r}.")
        self.do_resize, self.size, self.resample = do_resize, size, int(resample)
        self.do_rescale, self.rescale_factor = do_rescale, rescale_factor
        self.do_normalize, self.image_mean, self.image_std = do_normalize, list(image_mean), list(image_std)

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        device: str | torch.device = "cpu",
    ) -> BatchFeature:
        """
        Args:
            images: one image, a list of images, or an array of images with a leading batch axis.
            return_tensors: "pt" or "np"; without it `pixel_values` is a list of (3, height, width) numpy arrays.
            input_data_format: "channels_first" or "channels_last", for arrays that leave it open.
            device: where integers are turned into floating-point numbers and normalised, and `pixel_values` will be.

        Returns:
            pixel_values, float32 (B, 3, height, width), in [-1, 1] with the default settings.

        Raises:
            ValueError: an image that is empty, has values out of range, NaN, or is not RGB; TypeError: not an image.
                The message names its position in a list.
        """
        if input_data_format not in (None, "channels_first", "channels_last"):
            raise ValueError(
                f'input_data_format must be "channels_first" or "channels_last", got {input_data_format!r}.'
            )
        if _is_array(images) and images.ndim == 4:
            pixels = self._rescaled(self._pixels_of_array(images, input_data_format).to(device))
        else:
            several = isinstance(images, (list, tuple))
            if several and not images:
                raise ValueError("images is an empty list; at least one image is needed.")
            named = (
                [(f"image {position}: ", image) for position, image in enumerate(images)] if several else [("", images)]
            )
            arrays = [self.pixels(image, name, input_data_format) for name, image in named]
            if len({array.shape for array in arrays}) > 1:
                sizes = sorted({tuple(array.shape[2:]) for array in arrays})
                raise ValueError(f"without do_resize all images must have one size, got {sizes}.")
            if len({(array.dtype, array.device) for array in arrays}) > 1:
                arrays = [self._rescaled(array.to(device)) for array in arrays]
            pixels = self._rescaled(torch.cat(arrays).to(device))
        if self.do_normalize:
            pixels = normalize(pixels, self.image_mean, self.image_std)
        pixels = pixels.contiguous()  # in one order in memory, for the same answer to the bit whatever came in
        if return_tensors is None:
            return BatchFeature({"pixel_values": list(pixels.cpu().numpy())})
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def pixels(self, image: Any, name: str = "", input_data_format: str | None = None) -> torch.Tensor:
        """One image as (1, 3, height, width), resized but neither rescaled nor normalised: uint8, or float32 in [0, 1].

        `name` is put before the message of an error.
        """
        try:
            if isinstance(image, Image.Image):
                image = to_rgb(image)
                if self.do_resize:
                    image = image.resize((self.size["width"], self.size["height"]), self.resample)
                image, input_data_format = np.asarray(image), "channels_last"
            elif not _is_array(image):
                raise TypeError(f"a PIL image, numpy array or torch tensor is needed, got {type(image).__name__}.")
            if image.ndim != 3:
                raise ValueError(f"an array of an image must have 3 axes, got shape {tuple(image.shape)}.")
            return self._pixels_of_array(image[None], input_data_format)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}{error}") from error

    def _pixels_of_array(self, images: np.ndarray | torch.Tensor, input_data_format: str | None) -> torch.Tensor:
        """(B, H, W, 3) or (B, 3, H, W) to (B, 3, height, width), uint8 for integers and float32 for others, resized."""
        shape = tuple(images.shape)
        channels_last = input_data_format == "channels_last" or (input_data_format is None and shape[1] != 3)
        if shape[3 if channels_last else 1] != 3:
            raise ValueError(
                f"an array must have 3 channels (RGB), first or last, got shape {shape[1:]} for one image."
            )
        if 0 in shape:
            raise ValueError(f"an array must hold at least one image of at least one pixel, got shape {shape}.")
        images = _to_tensor(images)
        if images.dtype != torch.uint8:
            _check_range(images, 1 if images.is_floating_point() else 255)
        if not images.is_floating_point():
            images = images.to(torch.uint8)
        if channels_last:
            images = images.permute(0, 3, 1, 2)
        height, width = self.size["height"], self.size["width"]
        if not self.do_resize or images.shape[2:] == (height, width):
            return images
        if images.dtype == torch.uint8 and images.device.type == "cpu":
            # As PIL images are resized, for the same answer to the same pixels.
            arrays = images.permute(0, 2, 3, 1).numpy()
            resized = [np.asarray(Image.fromarray(array).resize((width, height), self.resample)) for array in arrays]
            return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        top = 255 if images.dtype == torch.uint8 else 1
        mode = RESAMPLING[self.resample]
        resized = F.interpolate(images.float(), (height, width), mode=mode, antialias=True).clamp(0, top)
        return resized.round().to(torch.uint8) if images.dtype == torch.uint8 else resized

    def _rescaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 of uint8, times the factor; floating-point pixels as they are."""
        if pixels.is_floating_point():
            return pixels
        return pixels.float() * self.rescale_factor if self.do_rescale else pixels.float()


def _to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8, int64 or float32, whatever numeric type came in: torch computes little with the others."""
    is_numpy = isinstance(images, np.ndarray)
    if images.dtype.kind not in "uif" if is_numpy else images.is_complex() or images.dtype == torch.bool:
        raise ValueError(
            f"an array must hold integers (0..255) or floating-point numbers ([0, 1]), got {images.dtype}."
        )
    if is_numpy:
        dtype = np.float32 if images.dtype.kind == "f" else np.uint8 if images.dtype == np.uint8 else np.int64
        return torch.from_numpy(np.require(images, dtype, "CW"))  # a copy if the memory is read-only, as a PIL image's
    if images.layout != torch.strided or images.is_meta:
        raise ValueError(f"a tensor must be dense and hold its data, got {images.layout} on {images.device}.")
    images = images.detach()
    if images.is_floating_point():
        return images.float()
    return images if images.dtype == torch.uint8 else images.long()


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


NulaImageProcessor.register_for_auto_class()
