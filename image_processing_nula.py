"""From any image to NULA's input: RGB, 32x32, antialiased resize, scaled to [-1, 1]."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .rgb_nula import CHANNELS, as_numbers, in_rgb, is_floating, to_rgb

SIDE = 32  # pixels
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
RESAMPLING = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
ORDERS = ("channels_first", "channels_last")
Array = TypeVar("Array", np.ndarray, torch.Tensor)
PROCESS = os.getpid()  # which imported this


def normalize(pixels: Array, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD) -> Array:
    """Return (pixels − mean) / std per channel: (..., 3, H, W) in [0, 1] to the model's input."""
    if isinstance(pixels, np.ndarray):
        mean, std = (np.array(values, dtype=pixels.dtype).reshape(-1, 1, 1) for values in (mean, std))
        centred = pixels - mean
        return np.divide(centred, std, out=centred)  # more memory would cost more than the division
    # Made on the CPU and sent after the work that waits, as a tensor made on a GPU would wait for it.
    mean, std = (
        torch.tensor(values, dtype=pixels.dtype).view(-1, 1, 1).to(pixels.device, non_blocking=True)
        for values in (mean, std)
    )
    return (pixels - mean) / std


@dataclass
class Settings:
    """What is done to images, checked.

    Args:
        do_resize, size, resample: antialiased resize to `size`, {"height", "width"}, by PIL's BILINEAR or BICUBIC.
        do_rescale, rescale_factor: multiply integer pixel values by this.
        do_normalize, image_mean, image_std: subtract and divide, per channel.

    Raises:
        ValueError: an impossible value; the message begins with its name.
    """

    do_resize: bool = True
    size: Any = SIDE
    resample: int = Image.Resampling.BICUBIC
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Any = IMAGE_MEAN
    image_std: Any = IMAGE_STD

    def __post_init__(self) -> None:
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if isinstance(self.resample, bool) or self.resample not in RESAMPLING:
            raise ValueError(f"resample must be 2 (BILINEAR) or 3 (BICUBIC), got {self.resample!r}.")
        if not _is_number(self.rescale_factor):
            raise ValueError(f"rescale_factor must be a number, got {self.rescale_factor!r}.")
        self.size, self.resample = _height_and_width(self.size), int(self.resample)
        self.image_mean = _of_channels("image_mean", self.image_mean)
        self.image_std = _of_channels("image_std", self.image_std)
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std must be positive, got {self.image_std!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(value)


def _height_and_width(size: Any) -> dict[str, int]:
    sides = size
    if isinstance(size, Mapping):
        sides = (size["height"], size["width"]) if set(size) == {"height", "width"} else ()
    elif isinstance(size, Integral):
        sides = (size, size)
    if not (
        isinstance(sides, (list, tuple))
        and len(sides) == 2
        and all(isinstance(side, Integral) and not isinstance(side, bool) and side > 0 for side in sides)
    ):
        raise ValueError(
            'size must be a number of pixels, (height, width) or {"height": pixels, "width": pixels}, with positive '
            f"integers, got {size!r}."
        )
    return {"height": int(sides[0]), "width": int(sides[1])}


def _of_channels(name: str, values: Any) -> list[float]:
    values = [values] * 3 if _is_number(values) else values
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"{name} must be a number, or one for each of R, G, B, got {values!r}.")
    return [float(value) for value in values]


SETTINGS = tuple(field.name for field in fields(Settings))


class NulaImageProcessor(BaseImageProcessor):
    """Prepares PIL images, numpy arrays and torch tensors, alone, in lists or as batched arrays.

    An array is (H, W, 3) or (3, H, W), with 1 (gray) or 4 channels (RGBA, which is put over white) in place of 3, or
    (H, W), and has a leading batch axis if it is a batch; integers mean 0..255, floating-point numbers [0, 1]. Where
    several orders are possible, three channels come before others and the first axis before the last, unless
    `input_data_format` tells. Arrays of the target size and whole batches take a vectorised path.

    Args:
        do_resize, size, resample: antialiased resize to `size`, a number of pixels, (height, width) or {"height",
            "width"}, by PIL's BILINEAR (2) or BICUBIC (3).
        do_rescale, rescale_factor: multiply integer pixel values by this; floating-point pixels are in [0, 1] already.
        do_normalize, image_mean, image_std: subtract and divide, per channel.

    Raises:
        ValueError: an impossible setting; the message begins with its name.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (the base class's own form)

    def __init__(
        self,
        do_resize: bool = True,
        size: int | Sequence[int] | dict[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] = IMAGE_MEAN,
        image_std: float | Sequence[float] = IMAGE_STD,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        size = SIDE if size is None else size
        settings = Settings(do_resize, size, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        for name in SETTINGS:
            setattr(self, name, getattr(settings, name))

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        data_format: str = "channels_first",
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> BatchFeature:
        """Turn images into the model's input.

        What is and stays in the host's memory is computed by numpy and Pillow, which work in a forked process too:
        torch's threads do not survive a fork, and an operation of several threads would wait for them for ever.

        Args:
            images: one image, a list of images, or an array of images with a leading batch axis.
            return_tensors: "pt" or "np"; without it `pixel_values` is a list of (3, height, width) numpy arrays.
            input_data_format: "channels_first" or "channels_last", for arrays that leave it open.
            data_format: "channels_first" or "channels_last", of `pixel_values`.
            device: where integers are turned into floating-point numbers and normalised, and `pixel_values` will be.
            settings: any of the processor's own, for this call; None leaves them. `do_convert_rgb=True` is what is
                always done.

        Returns:
            pixel_values, float32 (B, 3, height, width), in [-1, 1] with the default settings.

        Raises:
            ValueError: an image that is empty, has values out of range, NaN, or other channels; an impossible setting.
            TypeError: not an image, or an unknown setting. The message names the image's position in a list.
        """
        for name, order in (("input_data_format", input_data_format), ("data_format", data_format)):
            if order not in (None, *ORDERS):
                raise ValueError(f'{name} must be "channels_first" or "channels_last", got {order!r}.')
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'return_tensors must be "pt", "np" or None, got {return_tensors!r}.')
        preparation = _Preparation(self._settings(settings), input_data_format)
        if _is_array(images) and not _is_nested(images) and images.ndim == 4:
            pixels = preparation.of_array(images)
        elif isinstance(images, (list, tuple)) or _is_nested(images):
            pixels = preparation.of_list(images.unbind() if _is_nested(images) else images)
        else:
            pixels = preparation.of_image(images)
        pixels = preparation.finished(_moved(pixels, device))
        if data_format == "channels_last":
            pixels = pixels.swapaxes(1, 2).swapaxes(2, 3)
        if return_tensors == "pt":
            return BatchFeature({"pixel_values": _as_tensor(pixels)}, tensor_type="pt")
        pixels = _moved(pixels, "cpu")
        return BatchFeature({"pixel_values": list(pixels) if return_tensors is None else pixels}, return_tensors)

    def pixels(self, image: Any, input_data_format: str | None = None) -> torch.Tensor:
        """Resize one image: (1, 3, height, width), neither rescaled nor normalised, uint8 or float32 in [0, 1].

        Raises:
            ValueError, TypeError: as by `preprocess`.
        """
        return _as_tensor(_Preparation(self._settings({}), input_data_format).of_image(image))

    def _settings(self, given: dict[str, Any]) -> Settings:
        """The processor's settings but for those that are given."""
        unknown = given.keys() - {*SETTINGS, "do_convert_rgb"}
        if unknown:
            raise TypeError(f"{sorted(unknown)[0]!r} is no setting of this processor; it has {', '.join(SETTINGS)}.")
        if given.get("do_convert_rgb") not in (None, True):
            raise ValueError(f"do_convert_rgb must be True, as the model takes RGB, got {given['do_convert_rgb']!r}.")
        own = {name: getattr(self, name) for name in SETTINGS}
        return Settings(**own | {name: value for name, value in given.items() if name in own and value is not None})


@dataclass(frozen=True)
class _Preparation:
    """What a call does to images.

    Args:
        settings: what is asked for.
        input_data_format: of arrays that leave it open.
    """

    settings: Settings
    input_data_format: str | None

    def of_list(self, images: Sequence[Any]) -> Array:
        """(B, 3, height, width), uint8 or float32, of images."""
        if not images:
            raise ValueError("images is an empty list; at least one image is needed.")
        arrays = [self.of_image(image, name=f"image {position}: ") for position, image in enumerate(images)]
        if len({array.shape for array in arrays}) > 1:
            sizes = sorted({tuple(array.shape[2:]) for array in arrays})
            raise ValueError(f"without do_resize all images must have one size, got {sizes}.")
        if len({is_floating(array) for array in arrays}) > 1:
            arrays = [self._rescaled(array) for array in arrays]
        if len({str(getattr(array, "device", "cpu")) for array in arrays}) > 1:
            arrays = [_moved(array, "cpu") for array in arrays]
        return torch.cat(arrays) if isinstance(arrays[0], torch.Tensor) else np.concatenate(arrays)

    def of_image(self, image: Any, name: str = "") -> Array:
        """(1, 3, height, width), uint8 or float32; `name` is put before the message of an error."""
        try:
            if isinstance(image, Image.Image):
                image = to_rgb(image)
                if self.settings.do_resize:
                    image = image.resize((self._width, self._height), self.settings.resample)
                return _Preparation(self.settings, "channels_last").of_array(np.asarray(image)[None])
            if not _is_array(image):
                raise TypeError(f"a PIL image, numpy array or torch tensor is needed, got {type(image).__name__}.")
            if not _is_nested(image) and image.ndim == 2:
                return _Preparation(self.settings, "channels_last").of_array(image[None, ..., None])
            if _is_nested(image) or image.ndim != 3:
                shape = "of a nested tensor" if _is_nested(image) else f"shape {tuple(image.shape)}"
                raise ValueError(f"an array of an image must have 3 axes, or 2 if it is gray, got {shape}.")
            return self.of_array(image[None])
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}{error}") from error

    def of_array(self, images: Array) -> Array:
        """(B, H, W, C) or (B, C, H, W) to (B, 3, height, width), uint8 for integers and float32 for others, resized."""
        shape = tuple(images.shape)
        channels_last = self._channels_last(shape)
        if 0 in shape:
            raise ValueError(f"an array must hold at least one image of at least one pixel, got shape {shape}.")
        images = as_numbers(images)
        if channels_last:
            images = images.swapaxes(2, 3).swapaxes(1, 2)
        images = in_rgb(images)
        if not self.settings.do_resize or images.shape[2:] == (self._height, self._width):
            return images
        if isinstance(images, torch.Tensor):
            return self._interpolated(images)
        if is_floating(images):
            if os.getpid() != PROCESS:  # a forked one, without torch's threads; Pillow would round otherwise
                torch.set_num_threads(1)
            return self._interpolated(torch.from_numpy(images)).numpy()
        # As PIL images are resized, for the same answer to the same pixels.
        pictures = [Image.fromarray(image) for image in np.ascontiguousarray(images.transpose(0, 2, 3, 1))]
        resized = [picture.resize((self._width, self._height), self.settings.resample) for picture in pictures]
        return np.stack(resized).transpose(0, 3, 1, 2)

    def finished(self, pixels: Array) -> Array:
        """float32 (B, 3, height, width), rescaled and normalised."""
        # In one order in memory, for the same answer to the bit whatever came in.
        pixels = np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else pixels.contiguous()
        pixels = self._rescaled(pixels)
        if self.settings.do_normalize:
            pixels = normalize(pixels, self.settings.image_mean, self.settings.image_std)
        return pixels

    @property
    def _height(self) -> int:
        return self.settings.size["height"]

    @property
    def _width(self) -> int:
        return self.settings.size["width"]

    def _channels_last(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of (B, ...) has its channels last."""
        first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
        order = self.input_data_format
        if order is None:
            three = shape[3] == 3 and shape[1] != 3
            order = "channels_last" if three or not first else "channels_first"
        if not (last if order == "channels_last" else first):
            raise ValueError(
                "an array must have 1, 3 or 4 channels (gray, RGB or RGBA), first or last, got shape "
                f"{shape[1:]} for one image."
            )
        return order == "channels_last"

    def _interpolated(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, 3, height, width), of the same dtype, by torch's antialiased interpolation."""
        mode, top = RESAMPLING[self.settings.resample], 1 if images.is_floating_point() else 255
        size = (self._height, self._width)
        resized = F.interpolate(images.float(), size, mode=mode, antialias=True).clamp(0, top)
        return resized if images.is_floating_point() else resized.round().to(torch.uint8)

    def _rescaled(self, pixels: Array) -> Array:
        """float32 of uint8, times the factor; floating-point pixels as they are."""
        if is_floating(pixels):
            return pixels
        pixels = pixels.astype(np.float32) if isinstance(pixels, np.ndarray) else pixels.float()
        if self.settings.do_rescale:
            pixels *= float(self.settings.rescale_factor)
        return pixels


def _moved(array: Array, device: str | torch.device) -> Array:
    """`array` on `device`: numpy's in the host's memory, torch's elsewhere."""
    if isinstance(array, np.ndarray) and torch.device(device).type == "cpu":
        return array
    tensor = _as_tensor(array).to(device)
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _as_tensor(array: Array) -> torch.Tensor:
    """The same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_nested(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_nested


NulaImageProcessor.register_for_auto_class()
