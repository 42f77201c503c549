"""Answers as text, JSON or CSV, on standard output or in a file."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from nula.runtime.output import writing

Writer = Callable[[str, Any], None]  # of an image's name and its answer, as the pipeline gives it
Form = Callable[[TextIO], Writer]
NAMES = "surrogateescape"  # how names of files that are not UTF-8 are written: as the bytes that they are


def as_text(output: TextIO) -> Writer:
    """Write the name, and a line for each label below it."""

    def write(name: str, answer: Any) -> None:
        print(one_line(name), file=output)
        if isinstance(answer, dict):
            print(f"  error: {one_line(answer['error'])}", file=output)
            return
        for entry in answer:
            print(f"  {entry['label']:<12} {entry['score']:.3f}", file=output)

    return write


def as_json(output: TextIO) -> Writer:
    """Write an object for each image, a line: {"image", "answers": [{"label", "score"}]} or {"image", "error"}."""

    def write(name: str, answer: Any) -> None:
        given = answer if isinstance(answer, dict) else {"answers": answer}
        print(json.dumps({"image": name, **given}, ensure_ascii=False), file=output)

    return write


def as_csv(output: TextIO) -> Writer:
    """Write a row for each label of each image, or one with what is wrong with the image."""
    table = csv.DictWriter(output, ["image", "rank", "label", "score", "error"], lineterminator="\n")
    table.writeheader()

    def write(name: str, answer: Any) -> None:
        if isinstance(answer, dict):
            table.writerow({"image": name, **answer})
        else:
            table.writerows({"image": name, "rank": rank, **entry} for rank, entry in enumerate(answer, 1))

    return write


def one_line(text: str) -> str:
    r"""Return `text` with its control characters escaped, such as a newline as \n: a name may hold any of them."""
    return "".join(char.encode("unicode_escape").decode() if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    return ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029"


def check_output(file: Path | None) -> None:
    """Raise ValueError where answers cannot go to `file`, or for None to standard output."""
    if file is None:
        if sys.stdout is None:
            raise ValueError("standard output is closed; give --output FILE.")
    elif file.is_dir():
        raise ValueError(f"--output {file}: this is a folder; name a file.")
    elif not file.parent.is_dir():
        raise ValueError(f"--output {file}: there is no folder {file.parent}; make it first.")
    elif file.is_file() and file.stat().st_size:
        raise ValueError(f"--output {file}: this file holds something already; remove it, or name another.")


@contextmanager
def opened(file: Path | None, form: Form) -> Iterator[Writer]:
    """Give what writes an answer to `file`, or for None to standard output, and leaves none of it in a buffer.

    Raises:
        Unwritable: `file` cannot be opened, or an answer cannot be written.
    """
    with writing(file):
        output = sys.stdout if file is None else file.open("a", encoding="utf-8", errors=NAMES, newline="\n")
        write = form(output)

    def write_whole(name: str, answer: Any) -> None:
        with writing(file):
            write(name, answer)
            output.flush()  # for whoever reads along, and so that a reader who has left is noticed here

    try:
        yield write_whole
    finally:
        if file is not None:
            with suppress(OSError):  # of what could not be written, which has been told
                output.close()
