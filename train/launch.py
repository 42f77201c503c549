"""What all training scripts share: arguments, the run from data to a release's files, and the push."""

import argparse
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from nula.data import SIDE, DataSource, Split, add_data_arguments
from nula.evaluation.classes import match_classes
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import MINIMUM_SIDE, NulaForImageClassification
from nula.records.provenance import HEAD_NEW, HEAD_REORDERED
from nula.runtime.arguments import DefaultsHelpFormatter, assigned, at_least, positive
from nula.runtime.interruption import TrainingInterrupted
from nula.runtime.launcher import follow_launcher, keep_memory
from nula.train.budget import TimeBudget
from nula.train.checks import check_environment
from nula.train.loop import train
from nula.train.recipe import Version
from nula.train.record import RunInputs, TrainingData, release_of, training_record
from nula.train.run import RunSettings, dynamo_backend
from nula.train.start import Initialization, Parent
from nula.train.validation import check_parent, hold_out, known_temperature


def train_version(version: Version, initialization: Initialization, description: str) -> None:
    """Train `version` by the arguments of the command line, and leave a release in output_dir.

    `initialization` makes the model that it starts with; the first line of `description` is the help's. With
    --push_to_hub the result is measured and pushed.

    Ends the process with a message where the run cannot start or go on, and with the status 128 + signal, as shells
    have it, where it was asked to stop.
    """
    parser = build_parser(description.splitlines()[0])
    initialization.add_arguments(parser)
    arguments = parser.parse_args()
    budget = None if arguments.minutes is None else TimeBudget(arguments.minutes)
    accelerator = start_accelerator(arguments)
    try:
        inputs = gather_inputs(version, initialization, arguments, accelerator, budget)
        inputs = train_and_record(inputs, arguments, accelerator)
        if arguments.push_to_hub and accelerator.is_main_process:
            print(_push(inputs, arguments, accelerator))
    except TrainingInterrupted as interruption:
        accelerator.print(f"{interruption}; the same command with --resume goes on from there.")
        raise SystemExit(128 + interruption.signum) from interruption
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        accelerator.end_training()


def build_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of the arguments that every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=DefaultsHelpFormatter, allow_abbrev=False)
    add_data_arguments(parser)
    parser.add_argument(
        "--image_size", type=at_least(MINIMUM_SIDE), default=SIDE, help="pixels a side that images are resized to"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="receives weights, training.json, release.json, checkpoint/"
    )
    parser.add_argument("--seed", type=at_least(0, 2**32 - 1), default=0, help="of weights, batches and augmentation")
    parser.add_argument("--max_steps", type=at_least(1), help="stop after this many steps of the schedule, for tests")
    parser.add_argument(
        "--minutes",
        type=positive,
        help="take as many cosine_epochs as end within so many minutes from the start, saving included",
    )
    parser.add_argument("--checkpoint_steps", type=at_least(1), help="steps between checkpoints; an epoch unless given")
    parser.add_argument("--resume", action="store_true", help="go on from output_dir/checkpoint, if there is one")
    parser.add_argument("--report_to", metavar="TRACKER,...", help="trackers of accelerate's, such as tensorboard")
    parser.add_argument(
        "--validation_images",
        type=at_least(1),
        help="train without so many images of the training split, and measure on them at the end: the last ones where "
        "each class has its share of them, else of each class its share",
    )
    parser.add_argument(
        "--temperature_of",
        type=Path,
        metavar="RUN",
        help="give the model the temperature that this run of the same recipe fitted on its --validation_images",
    )
    parser.add_argument("--push_to_hub", action="store_true", help="measure the result, write its card and push it")
    parser.add_argument("--hub_model_id", metavar="OWNER/NAME", help="the repository that --push_to_hub pushes to")
    parser.add_argument("--hub_tag", metavar="TAG", help="of the commit, such as v1.0.0; the card pins it")
    parser.add_argument("--hub_private_repo", action="store_true", help="where the repository is made by this push")
    parser.add_argument(
        "--recipe", nargs="*", default=[], metavar="FIELD=VALUE", help="changes of the recipe, VALUE as in JSON"
    )
    return parser


def start_accelerator(arguments: argparse.Namespace) -> Accelerator:
    """Start all processes of a run, and return their accelerator.

    Ends the process with a message where an option cannot be met, or a push at the end is bound to fail.
    """
    follow_launcher()
    disable_progress_bar()  # of loading and saving weights
    if not arguments.push_to_hub and (arguments.hub_model_id or arguments.hub_tag or arguments.hub_private_repo):
        raise SystemExit("error: --hub_model_id, --hub_tag and --hub_private_repo are of --push_to_hub.")
    trackers = [tracker.value for tracker in get_available_trackers()]  # accelerate would only log at debug level
    wanted = arguments.report_to.split(",") if arguments.report_to else []
    for tracker in wanted:
        if tracker not in trackers:
            installed = ", ".join(trackers) or "none"
            raise SystemExit(f"error: --report_to {tracker} is not installed; installed trackers: {installed}.")
    try:
        check_environment()
        accelerator = Accelerator(log_with=wanted or None, project_dir=arguments.output_dir)
    except (ValueError, ImportError) as error:  # a device that cannot compute in bfloat16, among others
        raise SystemExit(f"error: {error}") from error
    keep_memory(accelerator.device)
    if dynamo_backend(accelerator) != "no":
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled is run as it is, with a warning
    if arguments.push_to_hub and accelerator.is_main_process:
        from nula.publishing.run import check_before  # training alone needs nothing of publishing

        check_before(arguments.hub_model_id, arguments.hub_tag, arguments.hub_private_repo)
    return accelerator


def gather_inputs(
    version: Version,
    initialization: Initialization,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    budget: TimeBudget | None,
) -> RunInputs:
    """Read recipe, weights and data that the arguments name.

    Raises:
        ValueError, OSError: an argument has an impossible value, or names what cannot be read.
    """
    make_start = initialization.load(arguments)
    allowed = [field.name for field in fields(version.recipe) if field.name != "name"]
    changes = assigned(arguments.recipe, allowed, "--recipe")
    if budget is not None and "cosine_epochs" in changes:
        raise ValueError("--minutes choose the cosine_epochs; leave them out of --recipe.")
    settings = RunSettings(
        recipe=replace(version.recipe, **changes),
        output_dir=arguments.output_dir,
        seed=arguments.seed,
        max_steps=arguments.max_steps,
        checkpoint_steps=arguments.checkpoint_steps,
        budget=budget,
    )
    source = DataSource.of(arguments)
    with accelerator.main_process_first():  # the others find the data set cached
        split = source.train(arguments.image_size)
    if arguments.push_to_hub:
        _check_test(source, split)
    held_out, other = arguments.validation_images, arguments.temperature_of
    if held_out and other:
        raise ValueError("--temperature_of is of runs without --validation_images, on which these fit their own.")
    temperature, temperature_of = known_temperature(other) if other else (None, None)
    data = TrainingData(source, *(hold_out(split, held_out) if held_out else (split,)))
    set_seed(arguments.seed)  # of weights that are drawn
    start = make_start(split.names)
    if held_out and start.parent is not None:
        check_parent(start.parent, data.train)
    start.model.config.calibration_temperature = temperature
    return RunInputs(version, settings, start, data, temperature_of)


def train_and_record(inputs: RunInputs, arguments: argparse.Namespace, accelerator: Accelerator) -> RunInputs:
    """Train, and leave weights, processor, training.json and release.json in output_dir.

    Returns:
        `inputs`, with the recipe that was followed.

    Raises:
        As `train` says, and OSError: the results cannot be written.
    """
    output_dir, data, model = inputs.settings.output_dir, inputs.data.train, inputs.start.model
    accelerator.print(
        f"{inputs.settings.recipe.name}: {model.num_parameters():,} parameters, {len(data.labels):,} images, "
        f"processes: {accelerator.num_processes}, mixed precision: {accelerator.mixed_precision}, "
        f"dynamo: {dynamo_backend(accelerator)}"
    )
    if inputs.start.parent is not None and inputs.start.parent.head in (HEAD_REORDERED, HEAD_NEW):
        accelerator.print(_head_line(inputs.start.parent, data))
    held_out = inputs.data.held_out
    if held_out is not None:
        accelerator.print(held_out.line())
    occurring = set(data.labels.tolist())
    absent = [name for index, name in enumerate(data.names) if index not in occurring]
    if absent:
        accelerator.print(f"no training image is of the classes: {_listed(absent)}.")
    trained, log = train(model, data, accelerator, inputs.settings, resume=arguments.resume)
    if "cosine_epochs" in log:  # fitted to --minutes; from here on the run is that of a recipe which says so
        recipe = replace(inputs.settings.recipe, cosine_epochs=log.pop("cosine_epochs"))
        inputs = replace(inputs, settings=replace(inputs.settings, recipe=recipe))
    if accelerator.is_main_process:
        with _writing(output_dir):
            _save(trained, arguments.image_size, output_dir)
    accelerator.wait_for_everyone()
    measured = None if held_out is None else held_out.measure(output_dir, accelerator)
    if accelerator.is_main_process:
        with _writing(output_dir):
            if measured is not None:
                model.config.calibration_temperature = measured.temperature
                model.config.save_pretrained(output_dir)
            record = training_record(inputs, log, accelerator, measured)
            (output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n")
            release_of(inputs, arguments.hub_model_id).save()
        accelerator.print(f"saved to {output_dir}")
    return inputs


def _save(model: NulaForImageClassification, image_size: int, output_dir: Path) -> None:
    model.save_pretrained(output_dir)
    NulaImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(output_dir)


def _head_line(parent: Parent, data: Split) -> str:
    """Say what became of the head of the trained weights."""
    if parent.head == HEAD_REORDERED:
        return f"the head of {parent.source} is kept, its classes in the order of the data's."
    known = "as the data have other classes than it knows"
    return f"a new head on the body of {parent.source}, {known}: {_listed(data.names)}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


@contextmanager
def _writing(output_dir: Path) -> Iterator[None]:
    """OSError, which says what to do, where the results of a run that is done cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the results could not be written to {output_dir}: {error}; its checkpoint is whole: once that is mended, "
            "the same command with --resume writes them."
        ) from error


def _check_test(source: DataSource, split: Split) -> None:
    """Raise ValueError or OSError where a push at the end could not measure the test split."""
    try:
        match_classes(source.test_names(), split.names)
    except (ValueError, OSError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"--push_to_hub measures the result on --test_split {source.test_split}: {error}") from error


def _push(inputs: RunInputs, arguments: argparse.Namespace, accelerator: Accelerator) -> str:
    """Measure the run, write its card, push it, and return the URL of the commit; SystemExit where that fails."""
    from nula.publishing.hub import PushRefused, Target
    from nula.publishing.run import publish

    output_dir, parent = inputs.settings.output_dir, inputs.start.parent
    target = Target(arguments.hub_model_id, arguments.hub_tag, arguments.hub_private_repo)
    try:
        start = None if parent is None else parent.source
        return publish(output_dir, inputs.data.source, target, accelerator.device, start)
    except (PushRefused, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"error: {error} The run is in {output_dir}; the same command with --resume pushes."
        ) from error
