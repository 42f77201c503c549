"""From any image to NULA's input: RGB, 32x32, antialiased resize, scaled to [-1, 1]."""

import contextlib
import os
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
RESAMPLING = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
PROCESS = os.getpid()  # which imported this
Array = TypeVar("Array", np.ndarray, torch.Tensor)
MODES_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def normalize(pixels: Array, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD) -> Array:
    """Return (pixels − mean) / std per channel: (..., 3, H, W) in [0, 1] to the model's input."""
    if isinstance(pixels, np.ndarray):
        mean, std = (np.array(values, dtype=pixels.dtype).reshape(-1, 1, 1) for values in (mean, std))
        centred = pixels - mean
        return np.divide(centred, std, out=centred)  # more memory would cost more than the division
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


def _check_range(values: Array, top: float) -> None:
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
        """Turn images into the model's input.

        What is and stays in the host's memory is computed by numpy and Pillow, which work in a forked process too:
        torch's threads do not survive a fork, and an operation of several threads would wait for them for ever.

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
            pixels = self._pixels_of_array(images, input_data_format)
        elif isinstance(images, (list, tuple)):
            pixels = self._pixels_of_list(images, input_data_format)
        else:
            pixels = self._pixels_of_image(images, input_data_format)
        pixels = _moved(pixels, device)
        # In one order in memory, for the same answer to the bit whatever came in.
        pixels = np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else pixels.contiguous()
        pixels = self._rescaled(pixels)
        if self.do_normalize:
            pixels = normalize(pixels, self.image_mean, self.image_std)
        if return_tensors == "pt":
            return BatchFeature({"pixel_values": _as_tensor(pixels)}, tensor_type="pt")
        pixels = _moved(pixels, "cpu")
        return BatchFeature({"pixel_values": list(pixels) if return_tensors is None else pixels}, return_tensors)

    def pixels(self, image: Any, input_data_format: str | None = None) -> torch.Tensor:
        """Resize one image: (1, 3, height, width), neither rescaled nor normalised, uint8 or float32 in [0, 1].

        Raises:
            ValueError, TypeError: as by `preprocess`.
        """
        return _as_tensor(self._pixels_of_image(image, input_data_format))

    def _pixels_of_list(self, images: Sequence[Any], input_data_format: str | None) -> Array:
        if not images:
            raise ValueError("images is an empty list; at least one image is needed.")
        arrays = [
            self._pixels_of_image(image, input_data_format, name=f"image {position}: ")
            for position, image in enumerate(images)
        ]
        if len({array.shape for array in arrays}) > 1:
            sizes = sorted({tuple(array.shape[2:]) for array in arrays})
            raise ValueError(f"without do_resize all images must have one size, got {sizes}.")
        if len({_is_floating(array) for array in arrays}) > 1:
            arrays = [self._rescaled(array) for array in arrays]
        if len({str(getattr(array, "device", "cpu")) for array in arrays}) > 1:
            arrays = [_moved(array, "cpu") for array in arrays]
        return torch.cat(arrays) if isinstance(arrays[0], torch.Tensor) else np.concatenate(arrays)

    def _pixels_of_image(self, image: Any, input_data_format: str | None, name: str = "") -> Array:
        """`name` is put before the message of an error."""
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

    def _pixels_of_array(self, images: Array, input_data_format: str | None) -> Array:
        """(B, H, W, 3) or (B, 3, H, W) to (B, 3, height, width), uint8 for integers and float32 for others, resized."""
        shape = tuple(images.shape)
        channels_last = input_data_format == "channels_last" or (input_data_format is None and shape[1] != 3)
        if shape[3 if channels_last else 1] != 3:
            raise ValueError(
                f"an array must have 3 channels (RGB), first or last, got shape {shape[1:]} for one image."
            )
        if 0 in shape:
            raise ValueError(f"an array must hold at least one image of at least one pixel, got shape {shape}.")
        images = _numbers(images)
        if channels_last:
            images = images.swapaxes(2, 3).swapaxes(1, 2)
        if not self.do_resize or images.shape[2:] == (self.size["height"], self.size["width"]):
            return images
        if isinstance(images, torch.Tensor):
            return self._interpolated(images)
        if _is_floating(images):
            if os.getpid() != PROCESS:  # a forked one, without torch's threads; Pillow would round otherwise
                torch.set_num_threads(1)
            return self._interpolated(torch.from_numpy(images)).numpy()
        # As PIL images are resized, for the same answer to the same pixels.
        pictures = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
        resized = [picture.resize((self.size["width"], self.size["height"]), self.resample) for picture in pictures]
        return np.stack(resized).transpose(0, 3, 1, 2)

    def _interpolated(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, 3, height, width), of the same dtype, by torch's antialiased interpolation."""
        mode, top = RESAMPLING[self.resample], 1 if images.is_floating_point() else 255
        size = (self.size["height"], self.size["width"])
        resized = F.interpolate(images.float(), size, mode=mode, antialias=True).clamp(0, top)
        return resized if images.is_floating_point() else resized.round().to(torch.uint8)

    def _rescaled(self, pixels: Array) -> Array:
        """float32 of uint8, times the factor; floating-point pixels as they are."""
        if _is_floating(pixels):
            return pixels
        pixels = pixels.astype(np.float32) if isinstance(pixels, np.ndarray) else pixels.float()
        if self.do_rescale:
            pixels *= float(self.rescale_factor)
        return pixels


def _numbers(images: Array) -> Array:
    """uint8 of integers 0..255 and float32 of floating-point numbers in [0, 1]; numpy's if in the host's memory.

    Raises:
        ValueError: other kinds of numbers or values, or a tensor that holds no data.
    """
    if isinstance(images, np.ndarray):
        wrong = images.dtype.kind not in "uif"
    else:
        wrong = images.is_complex() or images.dtype == torch.bool
    if wrong:
        raise ValueError(
            f"an array must hold integers (0..255) or floating-point numbers ([0, 1]), got {images.dtype}."
        )
    if isinstance(images, torch.Tensor):
        if images.layout != torch.strided or images.is_meta:
            raise ValueError(f"a tensor must be dense and hold its data, got {images.layout} on {images.device}.")
        images = images.detach()
        images = images.float() if images.is_floating_point() else images  # numpy has no bfloat16
        images = _moved(images, images.device)
    else:
        dtype = np.float32 if images.dtype.kind == "f" else images.dtype
        images = np.require(images, dtype, "CW")  # a copy if the memory is read-only, as a PIL image's
    if images.dtype == (np.uint8 if isinstance(images, np.ndarray) else torch.uint8):
        return images
    _check_range(images, 1 if _is_floating(images) else 255)
    if _is_floating(images):
        return images
    return images.astype(np.uint8) if isinstance(images, np.ndarray) else images.to(torch.uint8)


def _moved(array: Array, device: str | torch.device) -> Array:
    """`array` on `device`: numpy's in the host's memory, torch's elsewhere."""
    if isinstance(array, np.ndarray) and torch.device(device).type == "cpu":
        return array
    tensor = _as_tensor(array).to(device)
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _as_tensor(array: Array) -> torch.Tensor:
    """The same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _is_floating(array: Array) -> bool:
    return array.dtype.kind == "f" if isinstance(array, np.ndarray) else array.is_floating_point()


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


NulaImageProcessor.register_for_auto_class()
