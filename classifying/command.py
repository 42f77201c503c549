"""`nula classify` writes the answers of one model to any number of images, as they come."""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from nula.classifying.answers import Writer, as_csv, as_json, as_text, check_output, one_line, opened
from nula.runtime.arguments import at_least

if TYPE_CHECKING:  # torch and transformers are imported where they are needed: help and bad arguments do without
    from nula.classifying.sources import Source
    from nula.pipeline_nula import NulaImageClassificationPipeline
    from nula.reading_nula import Reading

DEFAULT_MODEL = "MamaPearl/nula-cifar10-robust-v1"
DTYPES = ("float32", "bfloat16", "float16")
PATHS = (
    "a file, folder or URL; a pattern in quotes, such as 'photos/**/*.jpg'; -: an image on standard input, or the "
    "names of images, one a line"
)
FORMATS = (
    "formats beside the usual ones, by Pillow's names, such as HEIF,JXL (which need the packages pillow-heif and "
    "pillow-jxl-plugin)"
)
OUTPUT = (
    "write the answers to FILE, each as it comes, so that an interruption loses none; a FILE that holds something is "
    "left alone, and refused"
)
EPILOG = (
    "A name that begins with - goes behind --. Exit codes: 0 all were classified, 1 some could not be, 2 bad "
    "arguments, no such model, or answers that cannot be written."
)


def format_names(text: str) -> tuple[str, ...]:
    """Read "HEIF,JXL" as ("HEIF", "JXL")."""
    names = tuple(name.strip().upper() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} must be names of formats with commas between them")
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula classify`."""
    parser.epilog = EPILOG
    parser.add_argument("paths", nargs="+", metavar="PATH", help=PATHS)
    parser.add_argument("-0", "--null", action="store_true", help="names on standard input end with NUL: find -print0")
    parser.add_argument("--formats", type=format_names, default=(), metavar="NAME,...", help=FORMATS)
    parser.add_argument(
        "--frame", type=at_least(0), default=0, help="of an animation, or page of a stack (default: %(default)s)"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="Hub id, or folder of a release (default: %(default)s)")
    parser.add_argument("--revision", help="commit or tag of the Hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: an accelerator where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default: %(default)s)")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--top-k", type=at_least(1), default=5, help="labels for each image (default: %(default)s)")
    parser.add_argument(
        "--calibrated", action="store_true", help="divide the logits by the temperature of the model's configuration"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=OUTPUT)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const=as_json, help="one JSON object a line")
    form.add_argument("--csv", dest="form", action="store_const", const=as_csv, help="one row for each label")
    parser.set_defaults(form=as_text)


def run(arguments: argparse.Namespace) -> int:
    """Write the answers as they come, and what is wrong with an image to standard error.

    Returns:
        0 if all were classified, 1 if some could not be, 2 if none can be or their answers cannot be written, of which
        a message says why.
    """
    try:
        check(arguments)
        from nula.classifying.model import load_pipe, register_decoders
        from nula.reading_nula import Reading

        register_decoders(arguments.formats)
        reading = Reading(formats=arguments.formats, frame=arguments.frame)
        pipe = load_pipe(arguments)
        with opened(arguments.output, arguments.form) as write:
            return _classify(pipe, arguments, reading, write)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for arguments that do not go together, or streams that are not there."""
    count = arguments.paths.count("-")
    if count > 1:
        raise ValueError("standard input can be read once: give - once.")
    if count and sys.stdin is None:
        raise ValueError("standard input is closed; give names of images, or open it.")
    if arguments.null and not count:
        raise ValueError("-0 is for names on standard input: give -, too.")
    check_output(arguments.output)


def _classify(
    pipe: "NulaImageClassificationPipeline", arguments: argparse.Namespace, reading: "Reading", write: Writer
) -> int:
    """Write what `pipe` gives for each image; 1 if any could not be classified, else 0."""
    from nula.classifying.sources import sources

    images: Iterable[Source] = sources(arguments.paths, b"\0" if arguments.null else b"\n", reading)
    total = None
    if "-" not in arguments.paths:
        images = known = list(images)
        total = len(known)
    names, failed, count = deque[str](), 0, 0

    def noted() -> Iterator[str | bytes]:
        for source in images:
            names.append(source.name)
            yield source.image

    on_screen = arguments.output is None and sys.stdout.isatty()
    # On a terminal the answers go above the progress bar, which is on standard error.
    above = tqdm.external_write_mode if on_screen else nullcontext
    settings = {"formats": reading.formats, "frame": reading.frame, "top_k": arguments.top_k, "on_error": "return"}
    answers = pipe(noted(), batch_size=arguments.batch_size, **settings)
    # Nothing is shown where standard error is no terminal, or where it is all over in a second.
    for answer in tqdm(answers, total=total, unit="image", desc="classifying", disable=None, delay=1):
        name, count = names.popleft(), count + 1
        if isinstance(answer, dict):
            failed += 1
            told = f"standard input: {answer['error']}" if name == "-" else answer["error"]
            tqdm.write(f"error: {one_line(told)}", file=sys.stderr)
            if arguments.form is as_text and arguments.output is None:
                continue
        with above():
            write(name, answer)
    if failed:
        print(f"error: {failed} of {count} images could not be classified.", file=sys.stderr)
    return 1 if failed else 0
