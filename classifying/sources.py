"""What a command line names: files, folders, URLs, patterns, and what standard input gives."""

import codecs
import glob
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

from nula.reading_nula import PLUGINS, Reading, image_files, is_folder, is_url

STANDARD_INPUT = "-"
CHUNK = 2**16  # bytes that are read at once, or fewer where no more are there
PREFIX = 16  # bytes that tell a format
# Formats whose mark might as well begin a name: "BMW.jpg", "P1000123.JPG", "qoif.png".
MARKS = {"BMP": rb"BM....\0\0", "PPM": rb"P[0-7fFy]\s+(#|WIDTH|\d+\s)", "QOI": rb"qoif\0"}
# What people send in place of an image, and what is no name either.
DOCUMENTS = (b"<?xml", b"<svg", b"<!DOCTYPE", b"%PDF", b"%!PS")


@dataclass(frozen=True)
class Source:
    """An image to be classified: its name for the answers, and its path, URL or bytes."""

    name: str
    image: str | bytes


def sources(paths: Iterable[str], end: bytes, reading: Reading) -> Iterator[Source]:
    """Yield the images that `paths` name, in order.

    Args:
        paths: files and URLs, folders, whose images are meant, and patterns such as "photos/**/*.jpg". "-" is standard
            input: an image, or the names of files, folders and URLs.
        end: of a name on standard input.
        reading: the formats that are taken.
    """
    for path in paths:
        if path == STANDARD_INPUT:
            yield from _from_standard_input(end, reading)
        else:
            yield from _named(_images(_matching(path), reading))


def _matching(path: str) -> list[str]:
    """What `path` matches as a pattern; itself where it is a URL, is there under this very name, or matches nothing."""
    if is_url(path) or os.path.lexists(path):
        return [path]
    found = sorted(glob.glob(os.path.expanduser(path), recursive=True))
    if "**" in path:  # which matches what is in a folder beside the folder
        found = [match for match in found if not is_folder(match)] or found
    return found or [path]


def _images(paths: Iterable[str], reading: Reading) -> Iterator[str]:
    """Files and URLs as they are, and the images of folders; each once."""
    seen = set()
    for path in paths:
        # A folder without images is left to the pipeline, which says so.
        files = [str(file) for file in image_files(path, reading.formats)] if is_folder(path) else []
        for file in files or [path]:
            if (where := os.path.normpath(file)) not in seen:
                seen.add(where)
                yield file


def _named(images: Iterable[str]) -> Iterator[Source]:
    return (Source(image, image) for image in images)


def _from_standard_input(end: bytes, reading: Reading) -> Iterator[Source]:
    """The image on standard input, or those that it names."""
    buffered = sys.stdin.buffer
    # Unbuffered: a name is seen as soon as it is written, and no lock is held by a thread that waits when all ends.
    file: BinaryIO = getattr(buffered, "raw", buffered)
    if sys.stdin.isatty():
        print("reading the names of images from the terminal, one a line, until Ctrl-D", file=sys.stderr)
    start = b""
    while len(start) < PREFIX and end not in start and (chunk := _read(file)):
        start += chunk
    if end == b"\n" and _holds_image(start, reading):
        yield Source(STANDARD_INPUT, start + b"".join(iter(lambda: _read(file), b"")))
        return
    if end == b"\n" and b"\0" in start:
        raise ValueError(
            "standard input holds NUL bytes: it is no image of a supported format, and no list of names that end with "
            "a newline. Where names end with NUL give -0."
        )
    named = False
    for name in _records(start.removeprefix(codecs.BOM_UTF8), file, end):
        named = True
        yield from _named(_images([os.fsdecode(name)], reading))
    if not named:
        warnings.warn("standard input names no image.", stacklevel=2)


def _read(file: BinaryIO) -> bytes:
    """What is there, some bytes at least; none at the end."""
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise OSError(f"standard input cannot be read: {error.strerror or error}.") from error


def _records(start: bytes, file: BinaryIO, end: bytes) -> Iterator[bytes]:
    """The names in `start` and behind it in `file`, each as soon as its end is read; empty ones are passed over."""
    rest, chunk = b"", start
    while chunk:
        *whole, rest = (rest + chunk).split(end)
        yield from filter(None, (_stripped(name, end) for name in whole))
        chunk = _read(file)
    if last := _stripped(rest, end):
        yield last


def _stripped(name: bytes, end: bytes) -> bytes:
    return name.rstrip(b"\r") if end == b"\n" else name  # of a list from Windows


def _holds_image(start: bytes, reading: Reading) -> bool:
    """Whether an image begins so: one that Pillow knows by its first bytes, or that a package of its own reads."""
    prefix = start[:PREFIX]
    for name in reading.allowed:
        accept = Image.OPEN[name][1]
        if name in MARKS:
            if re.match(MARKS[name], prefix, re.DOTALL):
                return True
        elif accept is not None and accept(prefix) is True:
            return True
    marked = any(prefix[where:].startswith(marks) for _, where, marks in PLUGINS.values())
    return marked or prefix.startswith(DOCUMENTS)
