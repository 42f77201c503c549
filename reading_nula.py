"""Images from paths, URLs, bytes and open files: the only code here that opens anything."""

import base64
import contextlib
import inspect
import io
import os
import struct
import threading
import time
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .configuration_nula import require_integer, require_positive

URL_SCHEMES = ("http://", "https://", "data:")
URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"  # that stay as they are in one; others, such as spaces, are quoted
# Pixels and nothing else: PIL would start Ghostscript for EPS, and has others decoded by whoever registered for them.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
# Formats that cameras write and PIL decodes only with another package, by where in a file they are told and by what.
PLUGINS = {
    "HEIF": ("pillow-heif", 4, (b"ftypheic", b"ftypheix", b"ftypheim", b"ftyphevc", b"ftypmif1", b"ftypmsf1")),
    "JXL": ("pillow-jxl-plugin", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
}

IN_MEMORY = (Image.Image, np.ndarray, torch.Tensor)
BYTES = (bytes, bytearray, memoryview)
NOT_AN_IMAGE = (
    "an image must be a path, a URL, bytes, an open file, a PIL image, a numpy array or a torch tensor; several come "
    "as a list, a tuple, an iterator, a torch data set (such as KeyDataset, of one column), a DataLoader or a folder"
)
TOO_LARGE = "it has more pixels than PIL.Image.MAX_IMAGE_PIXELS ({}); raise that to take it."

ONE_FILE_AT_A_TIME = threading.Lock()  # the same open file may come twice


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Args:
        timeout: seconds that a URL's server may be silent, and that its content may take in all.
        max_bytes: the most that a URL may give, decompressed.
        formats: names of formats, as Pillow has them, that are taken besides FORMATS.
        frame: which frame of an animation or page of a stack is taken.

    Raises:
        ValueError: a field has an impossible value, or Pillow has no decoder of a format; the message names the field.
    """

    timeout: float = 30.0
    max_bytes: int = 100 * 2**20
    formats: tuple[str, ...] = ()
    frame: int = 0

    def __post_init__(self) -> None:
        require_positive("timeout", self.timeout)
        require_integer("max_bytes", self.max_bytes, minimum=1)
        require_integer("frame", self.frame, minimum=0)
        if isinstance(self.formats, str) or not all(isinstance(name, str) for name in self.formats):
            raise ValueError(f'formats must be names of formats, such as ("HEIF",), got {self.formats!r}.')
        Image.init()
        for name in self.formats:
            if name not in Image.OPEN:
                package = PLUGINS[name][0] if name in PLUGINS else "one"
                raise ValueError(f"formats: Pillow has no decoder of {name!r}; register {package} with it first.")

    @property
    def allowed(self) -> list[str]:
        """The formats that are taken and that this Pillow decodes."""
        Image.init()
        return [name for name in (*FORMATS, *self.formats) if name in Image.OPEN]


@dataclass(frozen=True)
class Unreadable:
    """What stands for a row that its data set could not give."""

    error: Exception


@contextlib.contextmanager
def open_image(source: Any, reading: Reading = Reading()) -> Iterator[Any]:
    """Give the image of a path, URL, bytes or an open file, whose pixels PIL decodes when they are asked for.

    Args:
        source: a path, an http(s) or data URL, the bytes of an image file, an object with `read` (which is rewound
            first, if it can be) or `read_bytes`, or a row {"bytes", "path"} of a data set that is not decoded. A PIL
            image, array or tensor is given as it is.
        reading: limits, formats and frame.

    Raises:
        TypeError: `source` is none of these.
        OSError, ValueError, SyntaxError, ...: it cannot be read; `explained` turns all of them into one of three.
    """
    if isinstance(source, Unreadable):
        raise source.error
    if isinstance(source, Mapping):
        source = _of_row(source)
    if isinstance(source, IN_MEMORY):
        yield source
        return
    if is_url(source):
        source = fetch(source, reading)
    elif is_folder(source):
        raise ValueError("this folder holds no image.")
    with contextlib.ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            file = stack.enter_context(open(source, "rb"))
        else:
            file = io.BytesIO(source if isinstance(source, BYTES) else _content(source))
        try:
            image = stack.enter_context(Image.open(file, formats=reading.allowed))
            if reading.frame:
                _seek(image, reading.frame)
        except Image.DecompressionBombError:
            raise ValueError(TOO_LARGE.format(Image.MAX_IMAGE_PIXELS)) from None
        except Image.UnidentifiedImageError:
            raise ValueError(_unidentified(file, reading.allowed)) from None
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(TOO_LARGE.format(limit))
        yield image


def load_image(source: Any, reading: Reading = Reading()) -> Any:
    """Return the decoded image of any source of `open_image`, which says what is taken and raised."""
    with open_image(source, reading) as image:
        if isinstance(image, Image.Image):
            image.load()
        return image


def _of_row(row: Mapping) -> Any:
    """What a row of a column of images holds that is not decoded."""
    if not {"bytes", "path"} & row.keys() or not row.keys() <= {"bytes", "path"}:
        raise TypeError(f"a row with {listed(row)} is no image; give one of its values, such as KeyDataset gives it.")
    source = row.get("path") if row.get("bytes") is None else row["bytes"]
    if not isinstance(source, (str, os.PathLike, *BYTES)):
        raise TypeError(f"bytes or path of a row must be given, got {dict(row)!r}.")
    return source


def _content(source: Any) -> bytes:
    """All that an object with `read` or `read_bytes` gives."""
    if inspect.iscoroutinefunction(getattr(source, "read", None)):
        if not hasattr(source, "file"):  # an upload of an asynchronous server has the file itself there
            raise TypeError("its read is asynchronous; await it, and give the bytes.")
        source = source.file
    if callable(getattr(source, "read", None)):
        with ONE_FILE_AT_A_TIME:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream cannot be rewound
                source.seek(0)
            content = source.read()
    elif callable(getattr(source, "read_bytes", None)):
        content = source.read_bytes()
    else:
        raise TypeError(f"{NOT_AN_IMAGE}.")
    if not isinstance(content, BYTES):
        raise TypeError(f"reading it gives {type(content).__name__} instead of bytes; open the file in binary mode.")
    return content


def fetch(url: str, reading: Reading) -> bytearray:
    """Return the content of a URL, decompressed.

    Raises:
        OSError, ValueError: it cannot be had within the limits of `reading`.
    """
    headers = {}
    if url[:5].lower() == "data:":
        if "," not in url:
            raise ValueError("a data URL has a comma before its data.")
        request = urllib.request.Request(url)
    else:
        user, at, _ = urllib.parse.urlsplit(url).netloc.rpartition("@")
        if at:  # which urllib would take for a part of the host
            url = url.replace(user + at, "", 1)
            encoded = base64.b64encode(urllib.parse.unquote_to_bytes(user if ":" in user else user + ":")).decode()
            headers["Authorization"] = f"Basic {encoded}"
        address = urllib.parse.quote(url, safe=URL_CHARACTERS)
        request = urllib.request.Request(address, headers={"User-Agent": "nula"})  # some hosts refuse Python's own
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # another host has no business with it
    content, end = bytearray(), time.monotonic() + reading.timeout
    with urllib.request.urlopen(request, timeout=reading.timeout) as response:
        decoder = _decoder(response.headers.get("Content-Encoding"))
        while chunk := response.read1(2**16):
            content += decoder.decompress(chunk, reading.max_bytes + 1 - len(content)) if decoder else chunk
            if len(content) > reading.max_bytes:
                raise ValueError(f"there are more than {reading.max_bytes:,} bytes; pass max_bytes to take more.")
            if time.monotonic() > end:
                raise ValueError(f"timed out: not complete after {reading.timeout:g} s; pass timeout to wait longer.")
    return content


def _decoder(encoding: str | None) -> Any:
    """What decompresses a content that a server has encoded, unasked; None where it has not."""
    if (encoding or "identity").strip().lower() == "identity":
        return None
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"its Content-Encoding is {encoding!r}; gzip, deflate and none are supported.")
    return zlib.decompressobj(32 + zlib.MAX_WBITS)  # 32: of either, told by its header


def _seek(image: Image.Image, frame: int) -> None:
    frames = getattr(image, "n_frames", 1)
    if frame >= frames:
        raise ValueError(f"there is no frame {frame}; the first of {frames} is 0.")
    image.seek(frame)


def _unidentified(file: Any, allowed: list[str]) -> str:
    """What is to be said of a file that is of none of the allowed formats."""
    prefix = b""
    with contextlib.suppress(OSError):  # a pipe cannot be read again
        file.seek(0)
        prefix = file.read(16)
        if not prefix:
            return "it holds no bytes."
    for name, (_, accept) in Image.OPEN.items():
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # which PIL expects of them, too
            if name not in allowed and accept is not None and accept(prefix) is True:
                return f'it looks like {name}, which is not a supported format; formats=("{name}",) takes it.'
    for name, (package, start, marks) in PLUGINS.items():
        if prefix[start:].startswith(marks):
            return (
                f"it looks like {name}, which is not a supported format; register {package} with Pillow and pass "
                f'formats=("{name}",) to take it.'
            )
    return f"this is no image of a supported format ({', '.join(allowed)}), or it is damaged."


def rows(data_set: Any) -> Iterator[Any]:
    """Yield the rows of `data_set` in order, and Unreadable for one that cannot be read."""
    for index in range(len(data_set)):
        try:
            yield data_set[index]
        except Exception as error:  # a data set decodes by PIL, which raises OSError, SyntaxError, struct.error, ...
            yield Unreadable(error)


def image_files(folder: str | os.PathLike, formats: tuple[str, ...] = ()) -> list[Path]:
    """Return the image files in and below `folder`, sorted, told by their suffixes; one warning names the others.

    Links are followed, and each folder is read once, so that a link to a folder above it ends. Files and folders whose
    names begin with a dot are passed over.

    Args:
        folder: where to look.
        formats: names of formats, as Pillow has them, that are taken besides FORMATS.
    """
    suffixes = Image.registered_extensions()
    known = {suffix for suffix, kind in suffixes.items() if kind in (*FORMATS, *formats)}
    files, unreadable = _files(Path(folder))
    others = [file for file in files if file.suffix.lower() not in known]
    told = []
    if others:
        told.append(
            f"{len(others)} of {len(files)} files have no image's suffix and are skipped, such as {others[0].name!r}"
        )
        missing = sorted({suffixes[file.suffix.lower()] for file in others if file.suffix.lower() in suffixes})
        if missing:
            told.append(f"formats={tuple(missing)!r} would take those that are {' or '.join(missing)}")
    if unreadable:
        told.append(f"{len(unreadable)} links or folders cannot be read, such as {unreadable[0].name!r}")
    if told:
        warnings.warn(f"{os.fspath(folder)!r}: {'; '.join(told)}.", stacklevel=2)
    return [file for file in files if file.suffix.lower() in known]


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files in and below `folder`, sorted, and what leads nowhere or may not be read."""
    files, unreadable, seen = [], [], set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        try:
            entries = [entry for entry in here.iterdir() if not entry.name.startswith(".")]
        except OSError:
            unreadable.append(here)
            continue
        files += [entry for entry in entries if entry.is_file()]
        unreadable += [entry for entry in entries if entry.is_symlink() and not entry.exists()]
        # A folder's own name is preferred to a link's.
        waiting = sorted((e for e in entries if e.is_dir() and e.is_symlink()), reverse=True) + waiting
        waiting += sorted((e for e in entries if e.is_dir() and not e.is_symlink()), reverse=True)
    return sorted(files), sorted(unreadable)


def is_folder(item: Any) -> bool:
    """Tell whether `item` is the path of a folder. The empty path is none, though it means the working directory."""
    if not isinstance(item, (str, os.PathLike)) or item == "" or is_url(item):
        return False
    try:
        return Path(item).is_dir()
    except OSError:  # no file can have this name
        return False


def listed(names: Iterable[Any]) -> str:
    """Return the first of `names`, for messages."""
    return ", ".join(repr(name) for name in list(names)[:5]) or "nothing"


def gives_bytes(item: Any) -> bool:
    """Tell whether `item` gives the bytes of an image by `read` or `read_bytes`, as an open file or an upload does."""
    return any(callable(getattr(item, name, None)) for name in ("read", "read_bytes"))


def is_url(item: Any) -> bool:
    """Tell whether `item` is an address that is fetched."""
    return isinstance(item, str) and item[: max(map(len, URL_SCHEMES))].lower().startswith(URL_SCHEMES)


def explained(error: Exception, image: Any, place: str = "") -> Exception:
    """Return `error`, met while reading `image`, as one of three kinds, with place and image named in its message."""
    shown = _describe(image)
    name = (f"{place}: " if place else "") + shown
    if isinstance(error, FileNotFoundError) and isinstance(image, (str, os.PathLike)):
        return FileNotFoundError(f"{name}: there is no such file; give the path or URL of an image.")
    kind = TypeError if isinstance(error, TypeError) else ValueError
    # Of an OSError without the file's name, which may be very long.
    told = str((isinstance(error, OSError) and error.strerror) or error)
    return kind(f"{name}: {told.replace(image, shown) if is_url(image) else told}")


def _describe(image: Any) -> str:
    """A name for messages: the path or URL itself, else the kind and shape."""
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        if is_url(name) and name[:5].lower() != "data:":
            name = _without_secrets(name)
        return repr(name if len(name) <= 200 else name[:200] + "...")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    if isinstance(image, BYTES):
        return f"{memoryview(image).nbytes:,} bytes"
    if isinstance(image, Unreadable):
        return "row of the data set"
    return f"{type(image).__name__} of size {image.size}" if isinstance(image, Image.Image) else type(image).__name__


def _without_secrets(url: str) -> str:
    """An address without user, password and query, which may hold a signature or a token."""
    beginning, mark, _ = url.partition("?")
    scheme, slashes, rest = beginning.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{mark and '?...'}"
