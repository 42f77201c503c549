"""What the two training scripts share: arguments, the run, and the files it leaves."""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from nula.dataset import load_split
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.provenance import command_again, library_versions, public_argument
from nula.train.loop import train
from nula.train.recipe import Recipe


def build_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="Hub id, or a folder of the same layout")
    parser.add_argument("--output_dir", type=Path, required=True, help="receives weights, training.json, checkpoint/")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    parser.add_argument("--max_steps", type=int, help="stop after this many steps of the schedule, for tests")
    parser.add_argument("--resume", action="store_true", help="go on from output_dir/checkpoint")
    return parser


def run(
    model: NulaForImageClassification,
    recipe: Recipe,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    initial_weights_sha256: str | None = None,
) -> None:
    """Train by `recipe` on the whole training split and leave weights, processor and training.json in output_dir."""
    output_dir: Path = arguments.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with accelerator.main_process_first():  # the others find the data set cached
        data = load_split(arguments.dataset, "train")
    accelerator.print(
        f"{recipe.name}: {parameters:,} parameters, {len(data.labels):,} images, {accelerator.num_processes} processes"
    )
    started = time.perf_counter()
    average, epochs = train(
        model,
        recipe,
        data,
        accelerator,
        output_dir,
        seed=arguments.seed,
        max_steps=arguments.max_steps,
        resume=arguments.resume,
    )
    if accelerator.is_main_process:
        average.save_pretrained(output_dir)
        NulaImageProcessor().save_pretrained(output_dir)
        record = {
            "recipe": asdict(recipe),
            "command": command_again("accelerate launch", sys.argv),
            "initial_weights_sha256": initial_weights_sha256,
            "seed": arguments.seed,
            "max_steps": arguments.max_steps,
            "parameters": parameters,
            "dataset": {
                "name": public_argument(arguments.dataset),
                "split": "train",
                "images": len(data.labels),
                "sha256": data.fingerprint,
            },
            "epochs": epochs,
            "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
            "seconds_since_start": round(time.perf_counter() - started, 1),
            "hardware": _hardware(accelerator),
            "versions": library_versions(),
        }
        (output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        accelerator.print(f"saved to {output_dir}")
    accelerator.end_training()


def prepare(seed: int) -> Accelerator:
    _start_cpu_processes()
    set_seed(seed)
    return Accelerator()


def _start_cpu_processes() -> None:
    """Be two processes where `accelerate launch --cpu --num_processes 2` asks for two.

    On a CPU accelerate's launcher (1.15) leaves starting more than one process to MPI: it starts one, sets the address
    at which they would meet (on one machine, 127.0.0.1), and says nothing. Then this process becomes torchrun with the
    number that the launcher was given.
    """
    environment = os.environ
    started_otherwise = any(name in environment for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if started_otherwise or not on_cpu or environment.get("MASTER_ADDR") != "127.0.0.1":
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    processes = parser.parse_known_args(psutil.Process().parent().cmdline())[0].num_processes
    if processes is None:
        raise SystemExit("error: give the number of CPU processes on the command line: --cpu --num_processes 2.")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])


def _hardware(accelerator: Accelerator) -> dict:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "device": device.type,
        "name": name,
        "processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "mixed_precision": accelerator.mixed_precision,
    }


def _processor_name() -> str:
    """The processor as /proc/cpuinfo names it on Linux, else as Python does."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
