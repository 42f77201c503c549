"""What the two training scripts share: arguments, the run, and the files it leaves."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from safetensors import SafetensorError

from nula.data import CIFAR10, Split, load_split
from nula.evaluation.classifiers import load_classifier
from nula.evaluation.measuring import evaluate, table_rows
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.publishing.hub import PushRefused
from nula.publishing.run import check_before, publish
from nula.records.provenance import command_again, device_name, library_versions, public_argument
from nula.records.weights import weights_sha256
from nula.runtime.arguments import assigned, at_least
from nula.runtime.interruption import TrainingInterrupted
from nula.runtime.launcher import follow_launcher, keep_memory
from nula.train.loop import ARCHITECTURE, dynamo_backend, train
from nula.train.recipe import Recipe


def build_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that both scripts take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default=CIFAR10, help="Hub id, or a folder of the same layout")
    parser.add_argument("--output_dir", type=Path, required=True, help="receives weights, training.json, checkpoint/")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of weights, batches and augmentation")
    parser.add_argument("--max_steps", type=at_least(1), help="stop after this many steps of the schedule, for tests")
    parser.add_argument("--checkpoint_steps", type=at_least(1), help="steps between checkpoints; an epoch unless given")
    parser.add_argument("--resume", action="store_true", help="go on from output_dir/checkpoint")
    parser.add_argument("--report_to", help="a tracker that accelerate knows, such as tensorboard; none unless given")
    parser.add_argument(
        "--validation_images",
        type=at_least(1),
        help="train without the last so many images of the training split, and measure on them at the end",
    )
    parser.add_argument("--push_to_hub", action="store_true", help="measure the result, write its card and push it")
    parser.add_argument("--hub_model_id", metavar="OWNER/NAME", help="the repository that --push_to_hub pushes to")
    parser.add_argument("--hub_tag", metavar="TAG", help="of the commit, such as v1.0.0; the card pins it")
    parser.add_argument("--hub_private_repo", action="store_true", help="where the repository is made by this push")
    parser.add_argument(
        "--recipe", nargs="*", default=[], metavar="FIELD=VALUE", help="changes of the recipe, VALUE as in JSON"
    )
    return parser


def run(
    model: NulaForImageClassification,
    recipe: Recipe,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    v0: str | None = None,
) -> None:
    """Train by `recipe` on the training split and leave weights, processor and training.json in output_dir.

    `v0` names the weights that `model` came with, where it was trained before. With --push_to_hub the result is
    measured and pushed.

    Ends the process with a message where the run cannot start or go on, and with the status 128 + signal, as shells
    have it, where it was asked to stop.
    """
    output_dir: Path = arguments.output_dir
    allowed = [field.name for field in fields(recipe) if field.name != "name"]
    try:
        initial = None if v0 is None else weights_sha256(v0)
        recipe = replace(recipe, **assigned(arguments.recipe, allowed, "--recipe"))
        with accelerator.main_process_first():  # the others find the data set cached
            data = load_split(arguments.dataset, "train")
        held_out = None
        if arguments.validation_images:
            data, held_out = data.part_off(arguments.validation_images)
            if v0 is not None:
                _check_held_out(v0, data)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        accelerator.print(
            f"{recipe.name}: {parameters:,} parameters, {len(data.labels):,} images, "
            f"processes: {accelerator.num_processes}"
        )
        trained, log = train(
            model,
            recipe,
            data,
            accelerator,
            output_dir,
            seed=arguments.seed,
            max_steps=arguments.max_steps,
            checkpoint_steps=arguments.checkpoint_steps,
            resume=arguments.resume,
        )
        if accelerator.is_main_process:
            with _writing(output_dir):
                trained.save_pretrained(output_dir)
                NulaImageProcessor().save_pretrained(output_dir)
            record = {
                "weights_sha256": weights_sha256(output_dir),
                "recipe": asdict(recipe),
                "architecture": {field: getattr(model.config, field) for field in ARCHITECTURE},
                "command": command_again("accelerate launch", sys.argv),
                "initial_weights_sha256": initial,
                "seed": arguments.seed,
                "max_steps": arguments.max_steps,
                "parameters": parameters,
                "dataset": {
                    "name": public_argument(arguments.dataset),
                    "split": "train",
                    "images": len(data.labels),
                    "sha256": data.fingerprint,
                },
                **log,
                "hardware": _hardware(accelerator),
                "versions": library_versions(),
            }
        accelerator.wait_for_everyone()
        measured = None if held_out is None else _measure(output_dir, held_out, accelerator)
        if accelerator.is_main_process:
            if measured is not None:
                record["validation"] = measured
            with _writing(output_dir):
                (output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n")
            accelerator.print(f"saved to {output_dir}")
            if arguments.push_to_hub:
                url = publish(
                    recipe.name,
                    output_dir,
                    arguments.dataset,
                    arguments.hub_model_id,
                    accelerator.device,
                    v0=v0,
                    tag=arguments.hub_tag,
                    private=arguments.hub_private_repo,
                )
                print(url)
    except TrainingInterrupted as interruption:
        accelerator.print(f"{interruption}; the same command with --resume goes on from there.")
        raise SystemExit(128 + interruption.signum) from interruption
    except (PushRefused, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"error: {error} The run is in {output_dir}; the same command with --resume pushes."
        ) from error
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        accelerator.end_training()


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


def _check_held_out(v0: str, data: Split) -> None:
    """ValueError unless v0's record tells that it was trained on the images of `data` alone."""
    record = Path(v0) / "training.json"
    if not record.is_file() or json.loads(record.read_text())["dataset"]["sha256"] != data.fingerprint:
        raise ValueError(
            f"--v0 {v0} is not known to be trained without the images of --validation_images; train it with the same "
            "option, and give its folder."
        )


def _measure(folder: Path, data: Split, accelerator: Accelerator) -> dict[str, float]:
    """Accuracy in percent of the saved model under every row of the table, measured by all processes together."""
    classifier = load_classifier(str(folder), accelerator.device)
    accuracies = evaluate(classifier, data, table_rows(seed=0), accelerator, provenance={}).accuracies()
    return {row: round(accuracy, 2) for row, accuracy in accuracies.items()}


def prepare(arguments: argparse.Namespace) -> Accelerator:
    """The accelerator of a run, with all processes started and all random generators seeded.

    Ends the process with a message where an option cannot be met, or a push at the end is bound to fail.
    """
    follow_launcher()
    if not arguments.push_to_hub and (arguments.hub_model_id or arguments.hub_tag or arguments.hub_private_repo):
        raise SystemExit("error: --hub_model_id, --hub_tag and --hub_private_repo are of --push_to_hub.")
    set_seed(arguments.seed)
    trackers = [tracker.value for tracker in get_available_trackers()]  # accelerate would only log at debug level
    if arguments.report_to and arguments.report_to not in trackers:
        installed = ", ".join(trackers) or "none"
        raise SystemExit(f"error: --report_to {arguments.report_to} is not installed; installed trackers: {installed}.")
    accelerator = Accelerator(log_with=arguments.report_to, project_dir=arguments.output_dir)
    keep_memory(accelerator.device)
    if arguments.push_to_hub and accelerator.is_main_process:
        check_before(arguments.hub_model_id, arguments.hub_tag, arguments.hub_private_repo)
    return accelerator


def _hardware(accelerator: Accelerator) -> dict:
    device = accelerator.device
    return {
        "device": device.type,
        "name": device_name(device),
        "processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": dynamo_backend(accelerator),
    }
