"""The command `nula classify`."""

import argparse
import csv
import glob
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from importlib import import_module
from typing import Any, BinaryIO, TextIO

from tqdm import tqdm

from nula.runtime.arguments import at_least

DEFAULT_MODEL = "MamaPearl/nula-cifar10-robust-v1"
DTYPES = ("float32", "bfloat16", "float16")
# Formats that Pillow decodes once the function of a module has been called, or the module imported, and their package.
PLUGINS = {
    "HEIF": ("pillow_heif", "register_heif_opener", "pillow-heif"),
    "JXL": ("pillow_jxl", "", "pillow-jxl-plugin"),
}
# How files of images begin that need hold no NUL among their first bytes, and no list of names does.
BEGINNINGS = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|P[1-7]\s+(#.*\s+)?\d+\s+\d+\s", re.DOTALL)


class Refused(Exception):
    """What was asked for cannot be done; the message says why."""


Writer = Callable[[str, Any], None]  # of an image's name and its answer, as the pipeline gives it


class StandardInput:
    """What stands on standard input: names of images, one a line, or one image.

    Args:
        stream: of bytes.
        end: the byte behind each name.
    """

    def __init__(self, stream: BinaryIO, end: bytes = b"\n"):
        self._stream, self._end = stream, end

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield each name as soon as it has come, or the bytes of the image."""
        rest = self._read()
        if self._end != b"\0" and (b"\0" in rest or BEGINNINGS.match(rest)):
            yield rest + self._stream.read()
            return
        while chunk := rest:
            *whole, rest = chunk.split(self._end)
            yield from filter(None, map(self._name, whole))
            more = self._read()
            if not more:
                yield from filter(None, [self._name(rest)])
            rest = rest + more if more else b""

    def _read(self) -> bytes:
        content: bytes = self._stream.read1(2**16)  # type: ignore[attr-defined]  # what has come, and no wait for more
        return content

    def _name(self, name: bytes) -> str:
        return os.fsdecode(name.rstrip(b"\r") if self._end == b"\n" else name)


def sources(
    paths: Iterable[str], standard_input: Iterable[str | bytes], formats: tuple[str, ...] = ()
) -> Iterator[str | bytes]:
    """What is to be classified: files, URLs, images of folders, what patterns match, and for "-" standard input."""
    for path in paths:
        if path == "-":
            for name in standard_input:
                yield from [name] if isinstance(name, bytes) else _images(name, formats)
        else:
            matches = [] if os.path.exists(path) else sorted(glob.glob(os.path.expanduser(path), recursive=True))
            for match in matches or [path]:
                yield from _images(match, formats)


def _images(path: str, formats: tuple[str, ...]) -> list[str]:
    """A file or URL, or the images of a folder; one without images is left to the pipeline, which says so."""
    from nula.reading_nula import image_files, is_folder

    return [str(file) for file in image_files(path, formats)] or [path] if is_folder(path) else [path]


def as_text(output: TextIO) -> Writer:
    def write(name: str, answer: Any) -> None:
        # So that no name looks like an answer.
        print(re.sub(r"[\0-\x1f\x7f]", lambda control: repr(control[0])[1:-1], name), file=output)
        for entry in answer:
            print(f"  {entry['label']:<12} {entry['score']:.3f}", file=output)

    return write


def as_json(output: TextIO) -> Writer:
    """A line, an object for each image: {"image", "answers": [{"label", "score"}]} or {"image", "error"}."""

    def write(name: str, answer: Any) -> None:
        given = answer if isinstance(answer, dict) else {"answers": answer}
        print(json.dumps({"image": name, **given}, ensure_ascii=False), file=output)

    return write


def as_csv(output: TextIO) -> Writer:
    """A row for each label of each image, or one with what is wrong with the image."""
    table = csv.DictWriter(output, ["image", "rank", "label", "score", "error"], lineterminator="\n")
    table.writeheader()

    def write(name: str, answer: Any) -> None:
        if isinstance(answer, dict):
            table.writerow({"image": name, **answer})
        else:
            table.writerows({"image": name, "rank": rank, **entry} for rank, entry in enumerate(answer, 1))

    return write


def run(arguments: argparse.Namespace) -> int:
    """Write the answers as they come, and what is wrong with an image to standard error.

    Returns:
        0 if all were classified, 1 if some could not be, 2 if nothing could be done or the answers not be written.
    """
    try:
        return _classified(arguments)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _classified(arguments: argparse.Namespace) -> int:
    images: Iterable[str | bytes] = sources(arguments.paths, _standard_input(arguments), arguments.formats)
    total = None
    if "-" not in arguments.paths:
        images = known = list(images)
        total = len(known)
    names = deque[str]()

    def noted() -> Iterator[str | bytes]:
        for image in images:
            names.append("-" if isinstance(image, bytes) else image)
            yield image

    answers = _pipeline(arguments)(
        noted(),
        batch_size=arguments.batch_size,
        top_k=arguments.top_k,
        formats=arguments.formats,
        frame=arguments.frame,
        on_error="return",
    )
    with ExitStack() as stack:
        output = sys.stdout if arguments.output is None else stack.enter_context(_created(arguments.output))
        # Nothing is shown where standard error is no terminal, or where it is all over in a second.
        shown = tqdm(answers, total=total, unit="image", desc="classifying", disable=None, delay=1)
        try:
            return _written(((names.popleft(), answer) for answer in shown), arguments.format, output)
        except BrokenPipeError:  # whoever reads the answers has had enough, which is no error
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # what is left would fail again
            raise Refused(f"the answers cannot be written: {error.strerror or error}.") from None


def _written(answers: Iterator[tuple[str, Any]], form: Callable[[TextIO], Writer], output: TextIO) -> int:
    """Write the answers in that form; 1 if there was an error among them, else 0."""
    write, failed, count = form(output), 0, 0
    # On a terminal the answers go above the progress bar, which is on standard error.
    above = tqdm.external_write_mode if output.isatty() else nullcontext
    for name, answer in answers:
        count += 1
        if isinstance(answer, dict):
            failed += 1
            tqdm.write(f"error: {answer['error']}", file=sys.stderr)
            if form is as_text:
                continue
        with above():
            write(name, answer)
            output.flush()  # for whoever reads along, and so that a reader who has left is noticed here
    if failed:
        print(f"error: {failed} of {count} images could not be classified.", file=sys.stderr)
    return 1 if failed else 0


def _standard_input(arguments: argparse.Namespace) -> Iterable[str | bytes]:
    if "-" not in arguments.paths:
        return ()
    if sys.stdin is None:
        raise Refused("standard input is closed; give names of images there, or as arguments.")
    if sys.stdin.isatty():
        print("Names of images are read from here, one a line; Ctrl-D ends.", file=sys.stderr)
    return StandardInput(sys.stdin.buffer, b"\0" if arguments.null else b"\n")


def _created(name: str) -> TextIO:
    """A new file of that name."""
    try:
        return open(name, "x", encoding="utf-8", errors="surrogateescape", newline="")
    except FileExistsError:
        raise Refused(f"--output {name} is there already; remove it, or give another name.") from None
    except OSError as error:
        raise Refused(f"--output {name}: {error.strerror}.") from None


def _pipeline(arguments: argparse.Namespace) -> Any:
    """The pipeline of the model, on its device and in its dtype."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from nula.image_processing_nula import NulaImageProcessor
    from nula.pipeline_nula import NulaImageClassificationPipeline
    from nula.reading_nula import Reading
    from nula.records.weights import load_model

    for name in arguments.formats:
        _register(name)
    try:
        Reading(formats=arguments.formats)
    except ValueError as error:
        raise Refused(f"--{error}") from None
    try:
        device = torch.device(arguments.device)
        if device.type == "meta":
            raise ValueError("it holds no values")
        torch.empty(1, device=device)
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        [reason, *_] = str(error).splitlines()
        raise Refused(f"--device {arguments.device} cannot be used: {reason}") from None
    disable_progress_bar()  # of loading the weights
    try:
        model = load_model(arguments.model, revision=arguments.revision)
        processor = NulaImageProcessor.from_pretrained(arguments.model, revision=arguments.revision)
    except (OSError, ValueError) as error:
        raise Refused(f"{arguments.model} cannot be loaded: {error}") from None
    model = model.to(getattr(torch, arguments.dtype))
    return NulaImageClassificationPipeline(model=model, image_processor=processor, device=device)


def _register(name: str) -> None:
    """Give Pillow the decoder of a format that comes in a package of its own."""
    if name not in PLUGINS:
        return
    module, function, package = PLUGINS[name]
    try:
        plugin = import_module(module)
    except ImportError:
        raise Refused(f"--formats {name} needs a package; pip install {package}.") from None
    if function:
        getattr(plugin, function)()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit codes: 0 all were classified, 1 some could not be, 2 bad arguments or no such model."
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file, folder, URL or pattern ('photos/**/*.jpg'); -: standard input, names one a line or an image",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="Hub id, or folder of a release (default: %(default)s)")
    parser.add_argument("--revision", help="commit or tag of the Hub id")
    parser.add_argument("--device", default="cpu", help="such as cuda, cuda:1 or mps (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the model (default: %(default)s)")
    parser.add_argument("--top-k", type=at_least(1), default=5, help="labels for each image (default: %(default)s)")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--frame", type=at_least(0), default=0, help="of animations and stacks (default: %(default)s)")
    parser.add_argument(
        "--formats",
        type=lambda names: tuple(name.strip().upper() for name in names.split(",")),
        default=(),
        metavar="NAME,...",
        help="formats to take besides the usual ones: HEIF (pillow-heif), JXL (pillow-jxl-plugin), or Pillow's own",
    )
    parser.add_argument("-0", "--null", action="store_true", help="names on standard input end in NUL (find -print0)")
    parser.add_argument("--output", metavar="FILE", help="a new file for the answers, written as they come")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="format", action="store_const", const=as_json, help="one JSON object a line")
    form.add_argument("--csv", dest="format", action="store_const", const=as_csv, help="one row for each label")
    parser.set_defaults(format=as_text)
