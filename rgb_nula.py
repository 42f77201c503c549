"""RGB of any PIL image, as a viewer shows it, with few copies of it in memory; and of arrays of gray or with alpha."""

import contextlib
import io
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms

CHANNELS = (1, 3, 4)  # of arrays: gray, RGB, RGBA
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112  # the tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BAND = 2**20  # pixels that are converted at once
SPREAD = {"1": 255, "L;2": 85, "L;4": 17}  # a gray of a file of 1, 2 or 4 bits, as PIL spreads it over 8
EXACT: Any = 0x0100  # lcms's cmsFLAGS_NOOPTIMIZE, without which dark grays are up to ten levels off
SAME = 2  # levels by which a profile may differ from sRGB and be taken for it: rounding, and sRGB's other versions


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, as a viewer shows it; one that is so already is returned itself.

    EXIF orientation is applied, what is transparent is put over white, colours of an ICC profile become those of sRGB,
    and 16-bit gray is scaled to 8. Modes "I" and "I;16" are taken as 16-bit gray, 0..65535, and mode "F" as [0, 1].
    Metadata and profiles that cannot be read are passed over, as they are no reason to refuse the pixels.

    Raises:
        ValueError: no pixels, a mode "I" image beyond 0..65535 or a mode "F" image beyond [0, 1].
        OSError: the file behind the image is truncated or broken.
    """
    if 0 in image.size:
        raise ValueError(f"an image must have at least one pixel, got size {image.size}.")
    transparent = _transparent(image)  # before the pixels are decoded, and what tells the file's depth is gone
    turn = _turn(image)
    if image.mode == "F" or image.mode.startswith("I"):
        rgb = _of_deep_gray(image, transparent)
    else:
        convert = _conversion(image, transparent)
        rgb = image if convert is None else _in_bands(image, convert)
    image.load()  # raises here what is wrong with the pixels, also where they are taken as they are
    return rgb if turn is None else rgb.transpose(turn)


def as_numbers(images: Any) -> Any:
    """uint8 of integers 0..255 and float32 of floating-point numbers in [0, 1]; numpy's if in the host's memory.

    Raises:
        ValueError: other kinds of numbers or values, or a tensor that holds no data.
    """
    if isinstance(images, np.ma.MaskedArray):
        raise ValueError("a masked array leaves values open; give them, such as by filled(0).")
    if isinstance(images, np.ndarray):
        wrong = images.dtype.kind not in "uif"
    else:
        wrong = images.is_complex() or images.dtype == torch.bool or images.is_quantized
    if wrong:
        raise ValueError(
            f"an array must hold integers (0..255) or floating-point numbers ([0, 1]), got {images.dtype}."
        )
    if isinstance(images, torch.Tensor):
        if images.layout != torch.strided or images.is_meta:
            raise ValueError(f"a tensor must be dense and hold its data, got {images.layout} on {images.device}.")
        images = images.detach()
        if images.is_floating_point():  # numpy has no bfloat16
            images = images.float()
        elif images.dtype != torch.uint8:  # torch computes nothing with the wider unsigned ones
            images = images.long()
        images = images.numpy() if images.device.type == "cpu" else images
    else:
        dtype = np.float32 if images.dtype.kind == "f" else images.dtype
        images = np.require(images, dtype, ["C", "W"])  # a copy if the memory is read-only, as a PIL image's
    if images.dtype == (np.uint8 if isinstance(images, np.ndarray) else torch.uint8):
        return images
    _check_range(images, 1 if is_floating(images) else 255)
    if is_floating(images):
        return images
    return images.astype(np.uint8) if isinstance(images, np.ndarray) else images.to(torch.uint8)


def in_rgb(images: Any) -> Any:
    """(B, 3, H, W) of (B, C, H, W), uint8 or float32: gray repeated, and what is transparent put over white."""
    if images.shape[1] == 1:
        return images.repeat(3, axis=1) if isinstance(images, np.ndarray) else images.expand(-1, 3, -1, -1)
    if images.shape[1] == 3:
        return images
    colour, alpha = images[:, :3], images[:, 3:]
    if is_floating(images):
        return colour * alpha + (1 - alpha)
    # As Image.alpha_composite computes it, to the bit.
    wide: Any = [part.astype(np.int32) if isinstance(part, np.ndarray) else part.int() for part in (colour, alpha)]
    total = (wide[0] * wide[1] + 255 * (255 - wide[1])) * 128 + 0x4000
    over_white: Any = (((total >> 8) + total) >> 8) >> 7
    return over_white.astype(np.uint8) if isinstance(images, np.ndarray) else over_white.to(torch.uint8)


def is_floating(array: Any) -> bool:
    """Tell whether an array or tensor holds floating-point numbers."""
    return bool(array.dtype.kind == "f" if isinstance(array, np.ndarray) else array.is_floating_point())


def _check_range(values: Any, top: float) -> None:
    """Raise ValueError unless all numbers of an array or tensor lie in [0, top]."""
    low, high = values.min().item(), values.max().item()
    if low != low:  # numpy's and torch's minimum of values with a NaN among them is NaN
        raise ValueError(f"values must lie in [0, {top:g}], got NaN.")
    if low < 0 or high > top:
        raise ValueError(f"values must lie in [0, {top:g}], got {low:.9g} to {high:.9g}.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF orientation asks for."""
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    return None


def _transparent(image: Image.Image) -> Any:
    """The colour or index that is transparent, in the pixels' numbers where PIL gives the file's; None if none is."""
    value = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if tiles and image.format == "PNG" else None
    if image.mode in ("1", "L") and isinstance(value, int):
        if image.mode == "1":
            return min(value, 1) * SPREAD["1"]
        if stored is not None:
            return value * SPREAD.get(stored, 1)
        # Of pixels that were decoded before the depth shows in their values: 4 bits give multiples of 17, 2 of 85.
        counts = image.histogram()
        for step in (85, 17):
            if value < 256 // step and not any(count for gray, count in enumerate(counts) if gray % step):
                return value * step
    if image.mode == "RGB" and isinstance(value, tuple) and (stored == "RGB;16B" or max(value) > 255):
        value = tuple(number >> 8 for number in value)  # PIL keeps the high bytes of 16 bits
    kinds: dict[str, tuple[type, ...]] = {"RGB": (tuple,), "P": (int, bytes)}
    return value if isinstance(value, kinds.get(image.mode, (int,))) else None


def _conversion(image: Image.Image, transparent: Any) -> Callable[[Image.Image], Any] | None:
    """What makes RGB of a band of an image; None where it is RGB."""
    to_srgb = _to_srgb(image)
    if image.mode in ("1", "L") and isinstance(transparent, int):
        table = [255 if gray == transparent else gray for gray in range(256)]
        return lambda band: _colours(band.convert("L"), to_srgb, table)
    if image.mode in WITH_ALPHA or transparent is not None:
        return lambda band: _over_white(band, transparent, to_srgb)
    if image.mode == "RGB" and to_srgb is None:
        return None
    return lambda band: _colours(band, to_srgb)


def _colours(band: Image.Image, to_srgb: Any, table: list[int] | None = None) -> Any:
    """Without alpha: profile applied, then a table of grays."""
    if to_srgb is not None and band.mode == to_srgb.input_mode:
        shown = to_srgb.apply(band)
        if table is not None:
            white = Image.new("RGB", band.size, "white")
            shown.paste(white, mask=band.point([255 if entry != gray else 0 for gray, entry in enumerate(table)]))
        return shown
    if table is not None:
        band = band.point(table)
    band = band.convert("RGB")
    return to_srgb.apply(band) if to_srgb is not None and to_srgb.input_mode == "RGB" else band


def _over_white(band: Image.Image, transparent: Any, to_srgb: Any) -> Image.Image:
    if transparent is not None:
        band.info["transparency"] = transparent  # of this copy
    gray = to_srgb is not None and to_srgb.input_mode == "L"
    with_alpha = band.convert("LA" if band.mode == "La" else "RGBA").convert("RGBA")
    if to_srgb is not None:
        colours = to_srgb.apply(with_alpha.getchannel("R") if gray else with_alpha.convert("RGB"))
        colours.putalpha(with_alpha.getchannel("A"))
        with_alpha = colours
    return Image.alpha_composite(Image.new("RGBA", band.size, "white"), with_alpha).convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The whole image converted, without another whole one in memory beside both."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        rgb.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return rgb


def _of_deep_gray(image: Image.Image, transparent: Any) -> Image.Image:
    # PIL clips these to 0..255 instead of scaling them. Mode "I" is how it opens some 16-bit files.
    values, top = np.asarray(image), 1.0 if image.mode == "F" else 65535
    _check_range(values, top)
    gray = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, BAND // image.width)
    for first in range(0, len(values), rows):
        band = values[first : first + rows]
        clear = band == (-1 if transparent is None else transparent)
        gray[first : first + rows] = np.where(clear, 255, np.round(band * (255 / top)))
    return Image.fromarray(gray).convert("RGB")


def _to_srgb(image: Image.Image) -> Any:
    """What turns the colours of the image's ICC profile into those of sRGB; None where there is nothing to do."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        return None
    if image.mode == "CMYK":
        return _transform(profile, "CMYK")
    gray = image.mode in ("1", "L", "LA", "La")
    return _transform(profile, "L" if gray else "RGB") or (_transform(profile, "RGB") if gray else None)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    """From `mode` by a profile to sRGB; None where the profile is sRGB's own, of another kind of colours, or broken."""
    try:
        source, srgb = ImageCms.getOpenProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=EXACT)
        probe = _probe(mode)
        change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        return None
    return transform if np.abs(change).max() > SAME else None


def _probe(mode: str) -> Image.Image:
    """Colours from all over the cube of `mode`."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(steps[None])
    grid = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), axis=-1)
    return Image.frombytes(mode, (len(steps), grid.size // len(mode) // len(steps)), grid.tobytes())
