"""The one door: the command `nula`, which is also `python -m nula`."""

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

from tqdm import tqdm

from nula.runtime.arguments import at_least

DEFAULT_MODEL = "MamaPearl/nula-cifar10-robust-v1"

Writer = Callable[[str, Any], None]  # of an image's name and its answer, as the pipeline gives it


def sources(paths: Iterable[str], lines: TextIO) -> Iterator[str]:
    """What is to be classified: files and URLs as they are, the images of folders, and for "-" the lines of `lines`."""
    from nula.reading_nula import image_files, is_folder

    for path in paths:
        if path == "-":
            named = filter(None, (line.rstrip("\r\n") for line in lines))
            yield from sources((line for line in named if line != "-"), lines)
        elif is_folder(path):
            # A folder without images is left to the pipeline, which says so.
            files = [str(file) for file in image_files(path)]
            yield from files or [path]
        else:
            yield path


def as_text(output: TextIO) -> Writer:
    def write(name: str, answer: Any) -> None:
        print(name, file=output)
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


def classify(arguments: argparse.Namespace) -> int:
    """Write the answers as they come, and what is wrong with an image to standard error; 1 if that was any, else 0."""
    from transformers.utils.logging import disable_progress_bar

    from nula.image_processing_nula import NulaImageProcessor
    from nula.pipeline_nula import NulaImageClassificationPipeline
    from nula.records.weights import load_model

    disable_progress_bar()  # of loading the weights
    try:
        model = load_model(arguments.model, revision=arguments.revision)
        processor = NulaImageProcessor.from_pretrained(arguments.model, revision=arguments.revision)
    except (OSError, ValueError) as error:
        print(f"error: {arguments.model} cannot be loaded: {error}", file=sys.stderr)
        return 2
    pipe = NulaImageClassificationPipeline(model=model, image_processor=processor)
    write = arguments.format(sys.stdout)
    images: Iterable[str] = sources(arguments.paths, sys.stdin)
    total = None
    if "-" not in arguments.paths:
        images = known = list(images)
        total = len(known)
    names, failed, count = deque[str](), 0, 0

    def noted() -> Iterator[str]:
        for image in images:
            names.append(image)
            yield image

    # On a terminal the answers go above the progress bar, which is on standard error.
    above = tqdm.external_write_mode if sys.stdout.isatty() else nullcontext
    answers = pipe(noted(), batch_size=arguments.batch_size, top_k=arguments.top_k, on_error="return")
    # Nothing is shown where standard error is no terminal, or where it is all over in a second.
    for answer in tqdm(answers, total=total, unit="image", desc="classifying", disable=None, delay=1):
        name, count = names.popleft(), count + 1
        if isinstance(answer, dict):
            failed += 1
            tqdm.write(f"error: {answer['error']}", file=sys.stderr)
            if arguments.format is as_text:
                continue
        with above():
            write(name, answer)
            sys.stdout.flush()  # for whoever reads along, and so that a reader who has left is noticed here
    if failed:
        print(f"error: {failed} of {count} images could not be classified.", file=sys.stderr)
    return 1 if failed else 0


def add_classify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit codes: 0 all were classified, 1 some could not be, 2 bad arguments or no such model."
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, folder or URL; -: the lines of stdin")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="Hub id, or folder of a release (default: %(default)s)")
    parser.add_argument("--revision", help="commit or tag of the Hub id")
    parser.add_argument("--top-k", type=at_least(1), default=5, help="labels for each image (default: %(default)s)")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="images at a time (default: %(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="format", action="store_const", const=as_json, help="one JSON object a line")
    form.add_argument("--csv", dest="format", action="store_const", const=as_csv, help="one row for each label")
    parser.set_defaults(format=as_text)


@dataclass(frozen=True)
class Command:
    """One command of `nula`.

    Args:
        summary: what it does, for --help.
        module: holds `add_arguments(parser)` and `run(arguments)`, which returns the exit code (None for 0). It is
            imported when the command is called, so that `nula --help` is quick and no command needs another's packages.
        extra: of the package, that brings the module's requirements.
    """

    summary: str
    module: str
    extra: str


COMMANDS = {
    "classify": Command("classify images", "", ""),
    "evaluate": Command("measure models: the table of perturbations, studies", "nula.evaluation.command", "train"),
    "export": Command("write a model as torch.export and ONNX files", "nula.publishing.export", "export"),
    "release": Command("assemble the Hub repository of a release", "nula.publishing.release", "release"),
    "push": Command("check a release and push it to the Hub", "nula.publishing.push", "release"),
    "card": Command("rewrite model cards and the README's tables from results", "nula.model_card.card", "release"),
    "figures": Command("redraw the pictures of the model cards", "nula.model_card.figures", "train"),
    "app": Command("show all releases side by side in a browser", "nula.publishing.app", "app"),
}


def parse(words: list[str]) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], int | None]]:
    """Read a command line; return its arguments and what carries the command out."""
    parser = argparse.ArgumentParser(prog="nula", description="An anti-aliased image classifier, and its evidence.")
    parser.add_argument("--version", action="version", version=f"nula {version('nula')}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    called = next((word for word in words if not word.startswith("-")), None)
    run: Callable[[argparse.Namespace], int | None] = classify
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, description=f"{command.summary.capitalize()}.")
        if name != called:
            continue
        if not command.module:
            add_classify_arguments(subparser)
            continue
        try:
            module = import_module(command.module)
        except ModuleNotFoundError as error:
            parser.exit(2, f"error: nula {name} needs {error.name}; pip install 'nula[{command.extra}]'.\n")
        module.add_arguments(subparser)
        run = module.run
    return parser.parse_args(words), run


def main() -> int:
    """Carry out the command line; return the exit code, 130 where it was interrupted."""
    arguments, run = parse(sys.argv[1:])
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="surrogateescape")
    try:
        return run(arguments) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads the answers has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
