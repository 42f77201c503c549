"""Decoded images from paths, URLs and bytes: the only code here that opens anything."""

import io
import os
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

URL_SCHEMES = ("http://", "https://", "data:")
URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"  # that stay as they are in one; others, such as spaces, are quoted
# Pixels and nothing else: PIL would start Ghostscript for EPS, and has others decoded by whoever registered for them.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
TIMEOUT = 30.0  # seconds that a URL's server may be silent, and that its content may take in all
MAX_BYTES = 100 * 2**20  # of what a URL gives

IN_MEMORY = (Image.Image, np.ndarray, torch.Tensor)
BYTES = (bytes, bytearray, memoryview)


@dataclass(frozen=True)
class Unreadable:
    """What stands for a row that its data set could not give."""

    error: Exception


def load_image(source: Any, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES) -> Any:
    """Return the decoded image of a path, URL or bytes, and a PIL image or array as it is.

    Args:
        source: a path, an http(s) or data URL, the bytes of an image file, a PIL image, an array or a tensor.
        timeout: seconds that a URL's server may be silent, and that its content may take in all.
        max_bytes: the most that a URL may give.

    Raises:
        TypeError: `source` is none of these.
        OSError, ValueError, SyntaxError, ...: it cannot be read; `explained` turns all of them into one of three.
    """
    if isinstance(source, Unreadable):
        raise source.error
    if isinstance(source, IN_MEMORY):
        return source
    if _is_url(source):
        holds_data = source[:5].lower() == "data:"
        if holds_data and "," not in source:
            raise ValueError("a data URL has a comma before its data.")
        end = time.monotonic() + timeout
        address = source if holds_data else urllib.parse.quote(source, safe=URL_CHARACTERS)
        request = urllib.request.Request(address, headers={"User-Agent": "nula"})  # some hosts refuse Python's own
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content = bytearray()
            while chunk := response.read1(2**16):
                content += chunk
                if len(content) > max_bytes:
                    raise ValueError(f"there are more than {max_bytes:,} bytes; pass max_bytes to take more.")
                if time.monotonic() > end:
                    raise ValueError(f"timed out: not complete after {timeout:g} s; pass timeout to wait longer.")
        source = bytes(content)
    if isinstance(source, BYTES):
        source = io.BytesIO(source)
    elif not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "an image must be a path, a URL, bytes, a PIL image, a numpy array or a torch tensor; several come as a "
            "list, a tuple, an iterator, a torch data set (such as KeyDataset, of one column) or a folder."
        )
    elif is_folder(source):
        raise ValueError("this folder holds no image.")
    too_large = "it has more pixels than PIL.Image.MAX_IMAGE_PIXELS ({}); raise that to take it.".format
    try:
        Image.init()
        with Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(too_large(limit))
            image.load()
            return image
    except Image.DecompressionBombError:
        raise ValueError(too_large(Image.MAX_IMAGE_PIXELS)) from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            "this is no image of a known kind (PNG, JPEG, WebP, GIF, BMP, TIFF and the like), or it is damaged."
        ) from None


def rows(data_set: Any) -> Iterator[Any]:
    """Yield the rows of `data_set` in order, and Unreadable for one that cannot be read."""
    for index in range(len(data_set)):
        try:
            yield data_set[index]
        except Exception as error:  # a data set decodes by PIL, which raises OSError, SyntaxError, struct.error, ...
            yield Unreadable(error)


def image_files(folder: str | os.PathLike) -> list[Path]:
    """Return the image files in and below `folder`, sorted, told by their suffixes; one warning names the others.

    Files and folders whose names begin with a dot are passed over.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}

    def hidden(file: Path) -> bool:
        return any(part.startswith(".") for part in file.relative_to(folder).parts)

    files = sorted(file for file in Path(folder).rglob("*") if file.is_file() and not hidden(file))
    others = [file for file in files if file.suffix.lower() not in known]
    if others:
        told = (
            f"{len(others)} of {len(files)} files have no image's suffix and are skipped, such as {others[0].name!r}."
        )
        warnings.warn(f"{os.fspath(folder)!r}: {told}", stacklevel=2)
    return [file for file in files if file.suffix.lower() in known]


def is_folder(item: Any) -> bool:
    """Tell whether `item` is the path of a folder. The empty path is none, though it means the working directory."""
    if not isinstance(item, (str, os.PathLike)) or item == "" or _is_url(item):
        return False
    try:
        return Path(item).is_dir()
    except OSError:  # no file can have this name
        return False


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source[: max(map(len, URL_SCHEMES))].lower().startswith(URL_SCHEMES)


def explained(error: Exception, image: Any, place: str = "") -> Exception:
    """Return `error`, met while reading `image`, as one of three kinds, with place and image named in its message."""
    name = (f"{place}: " if place else "") + _describe(image)
    if isinstance(error, FileNotFoundError) and isinstance(image, (str, os.PathLike)):
        return FileNotFoundError(f"{name}: there is no such file; give the path or URL of an image.")
    kind = TypeError if isinstance(error, TypeError) else ValueError
    # Of an OSError without the file's name, which may be very long.
    return kind(f"{name}: {(isinstance(error, OSError) and error.strerror) or error}")


def _describe(image: Any) -> str:
    """A name for messages: the path or URL itself, else the kind and shape."""
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        return repr(name if len(name) <= 200 else name[:200] + "...")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    if isinstance(image, BYTES):
        return f"{memoryview(image).nbytes:,} bytes"
    if isinstance(image, Unreadable):
        return "row of the data set"
    return f"{type(image).__name__} of size {image.size}" if isinstance(image, Image.Image) else type(image).__name__
