"""`nula evaluate`: a command for each study, all of them at once, and what stored results say.

`nula evaluate table --model releases/v1 --output releases/v1/results` measures; every command leaves raw results with
their provenance. `accelerate launch -m nula evaluate table ...` shares a table out over processes.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from nula.data import add_data_arguments
from nula.evaluation.claims import findings
from nula.evaluation.classifiers import AT_DATA, AT_MODEL
from nula.evaluation.comparison import as_csv, as_markdown, as_text
from nula.evaluation.measuring import BLOCK
from nula.evaluation.session import Session
from nula.evaluation.studies import STUDIES
from nula.evaluation.studies.study import Study
from nula.records.release import FILE, Release, Results
from nula.records.table import Table
from nula.runtime.arguments import at_least
from nula.runtime.launcher import follow_launcher, keep_memory

WHERE = (
    "size at which images are perturbed; a study that takes all images as one tensor perturbs those of several sizes "
    "at the model's"
)
ALL = "studies"  # the command that runs every study beside the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a command for each study, for all of them, and for what stored results say."""
    commands = parser.add_subparsers(required=True, dest="study", metavar="STUDY")

    def add(name: str, text: str, carry_out: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        form = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(name, help=text, description=f"Measure: {text}.", formatter_class=form)
        command.set_defaults(carry_out=carry_out)
        return command

    for study in STUDIES:
        command = add(study.name, study.summary, _measures(study))
        _add_common(command, several=not study.of_pair)
        study.add_options(command)
    _add_common(add(ALL, "every study beside the table, with its own settings", measure_all), several=False)
    command = add("compare", "stored tables, row by row", compare)
    command.description = "Compare stored tables with the first of them, row by row."
    command.add_argument("results", type=Path, nargs="+", help="folders of predictions.npz, two at least")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--csv", dest="form", action="store_const", const=as_csv, help="accuracies, one line a row")
    form.add_argument("--markdown", dest="form", action="store_const", const=as_markdown, help="a table of accuracies")
    command.set_defaults(form=as_text)
    command = add("claims", "what results say about the claims of the published cards", claims)
    command.description = "Say what the results of a base and a fine-tuned model tell of each published claim."
    command.add_argument("results", type=Path, nargs=2, help="folders of the results of the base and of the fine-tuned")


def run(arguments: argparse.Namespace) -> None:
    """Carry out a command of `nula evaluate`; SystemExit with a message where it cannot be."""
    try:
        arguments.carry_out(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher passes on what the whole process group got already
        resumable = any(study.resumable for study in STUDIES if study.name == arguments.study)
        if os.environ.get("RANK", "0") == "0":
            print("interrupted" + resumable * "; the same command goes on after the last finished row", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def compare(arguments: argparse.Namespace) -> None:
    """Print stored tables beside each other.

    Raises:
        ValueError: fewer than two, or not of the same rows, seeds and images.
    """
    folders: list[Path] = arguments.results
    if len(folders) < 2:
        raise ValueError(f"at least two folders of results can be compared, got {len(folders)}.")
    for folder in folders:
        if not (folder / "predictions.npz").is_file():
            raise ValueError(f"{folder} holds no table; give a folder that `nula evaluate table` wrote.")
    print(arguments.form({str(folder): Table.load(folder) for folder in folders}))


def claims(arguments: argparse.Namespace) -> None:
    """Print what two folders of results say of each claim of the published cards."""
    for finding in findings(*map(Results, arguments.results)):
        print(f"{finding.claim}: {finding.verdict}")
        if finding.evidence:
            print(f"    {finding.evidence}")


def measure_all(arguments: argparse.Namespace) -> None:
    """Run every study beside the table, each with its own settings; those of a pair where the model has a parent."""
    folder = Path(arguments.model[0])
    has_parent = (folder / FILE).is_file() and Release.load(folder).parent is not None
    for study in STUDIES:
        if study.name == "table" or (study.of_pair and not has_parent):
            continue
        options = argparse.ArgumentParser()
        study.add_options(options)
        defaults = vars(options.parse_args([]))
        print(f"\n{study.name}: {study.summary}")
        _measures(study)(argparse.Namespace(**{**defaults, **vars(arguments), "study": study.name}))


def _measures(study: Study) -> Callable[[argparse.Namespace], None]:
    """What runs a study in the processes that it was launched in."""

    def measure(arguments: argparse.Namespace) -> None:
        follow_launcher()
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 in full
        accelerator = Accelerator(cpu=arguments.cpu)
        keep_memory(accelerator.device)
        if accelerator.num_processes > 1 and not study.resumable:
            raise ValueError(f"{study.name} runs in one process, got {accelerator.num_processes}.")
        study.run(Session(arguments, accelerator))

    return measure


def _add_common(command: argparse.ArgumentParser, several: bool) -> None:
    model = "release, Hub id or folder of an AutoModelForImageClassification, .onnx file, or package.module:function"
    if several:
        command.add_argument("--model", required=True, action="append", help=f"{model}; once or more often")
    else:
        command.add_argument("--model", required=True, nargs=1, help=model)
    add_data_arguments(command)
    command.add_argument("--output", type=Path, required=True, help="receives the results")
    command.add_argument("--overwrite", action="store_true", help="replace results of another model or of other data")
    command.add_argument("--revision", help="commit, branch or tag of the Hub id that --model is")
    command.add_argument("--perturb_at", choices=(AT_DATA, AT_MODEL), default=AT_DATA, help=WHERE)
    command.add_argument(
        "--classes", type=Path, help="JSON file, class of the data to class of the model, its index, or a list"
    )
    command.add_argument(
        "--batch_size",
        type=at_least(1, BLOCK),
        default=BLOCK,
        help="images that a table's model sees at a time; a smaller one takes less memory and gives the same answers",
    )
    command.add_argument("--cpu", action="store_true", help="even where there is an accelerator")
