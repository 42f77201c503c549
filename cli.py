"""The one door: the command `nula`, which is also `python -m nula`."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from nula.runtime.output import Unwritable, abandon_output, writing


@dataclass(frozen=True)
class Command:
    """One command of `nula`.

    Args:
        summary: what it does, for --help.
        module: holds `add_arguments(parser)` and `run(arguments)`, which returns the exit code (None for 0). It is
            imported when the command is called, so that `nula --help` is quick and no command needs another's packages.
        extra: of the package, that brings the module's requirements; "" where the package itself does.
    """

    summary: str
    module: str
    extra: str


COMMANDS = {
    "classify": Command("classify images", "nula.classifying.command", ""),
    "evaluate": Command("measure models: the table of perturbations, studies", "nula.evaluation.command", "train"),
    "export": Command("write a model as torch.export and ONNX files", "nula.publishing.export", "export"),
    "release": Command("assemble the Hub repository of a release", "nula.publishing.release", "release"),
    "push": Command("check a release and push it to the Hub", "nula.publishing.push", "release"),
    "card": Command(
        "rewrite model cards and the tables of README and docs from results", "nula.model_card.card", "release"
    ),
    "figures": Command("redraw the pictures of the model cards", "nula.model_card.figures", "train"),
    "app": Command("show all releases side by side in a browser", "nula.publishing.app", "app"),
}


def parse(words: list[str]) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], int | None]]:
    """Read a command line; return its arguments and what carries the command out."""
    parser = argparse.ArgumentParser(prog="nula", description="An anti-aliased image classifier, and its evidence.")
    parser.add_argument("--version", action="version", version=f"nula {version('nula')}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    called = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, description=f"{command.summary.capitalize()}.")
        if name != called:
            continue
        try:
            module = import_module(command.module)
        except ModuleNotFoundError as error:
            package = f"'nula[{command.extra}]'" if command.extra else "nula"
            parser.exit(2, f"error: nula {name} needs {error.name}; pip install {package}.\n")
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    arguments = parser.parse_args(words)
    return arguments, arguments.run


def main() -> int:
    """Carry out the command line; return the exit code: 2 where it cannot be, 130 where it was interrupted."""
    arguments, run = parse(sys.argv[1:])
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    warnings.filterwarnings("once", category=UserWarning, append=True)  # wherever it comes from
    if sys.stderr is None:  # it was closed, and tqdm would take standard output in its place
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        code = run(arguments) or 0
        if sys.stdout is not None:
            with writing():
                sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _without_reader()
    except SystemExit as ended:  # how a command refuses what it is given
        if isinstance(ended.__cause__, BrokenPipeError):
            return _without_reader()
        if isinstance(ended.code, str):  # which the interpreter would end with 1 for
            print(" ".join(ended.code.split()), file=sys.stderr)
            ended.code = 2
        raise
    except Unwritable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _without_reader() -> int:
    """The end of a command whose reader has had enough, which is no error."""
    abandon_output()
    return 0
