"""Output that cannot be written: its reader has left, or its disk is full."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Unwritable(OSError):
    """Output cannot be written; the message says where and why."""


@contextmanager
def writing(file: Path | None = None) -> Iterator[None]:
    """Raise Unwritable for an OSError met while writing `file`, or for None standard output, which is then dropped.

    A reader who has left stays a BrokenPipeError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if file is None:
            abandon_output()
        where = "standard output" if file is None else f"--output {file}"
        raise Unwritable(f"{where} cannot be written: {error.strerror or error}.") from error


def abandon_output() -> None:
    """Drop what standard output still holds: the interpreter would try to write it again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
