"""Output that cannot be written: its reader has left, or its disk is full."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Unwritable(Exception):
    """Output cannot be written; the message says where and why."""


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Raise Unwritable, which names `where`, for an OSError; a reader who has left stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable(f"{where} cannot be written: {error.strerror or error}.") from error


def abandon_output() -> None:
    """Drop what standard output still holds: the interpreter would try to write it again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
