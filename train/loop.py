"""The one training loop, of v0 and v1 alike."""

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from nula.data import SIDE, Split
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification
from nula.records.provenance import device_name, speed_of
from nula.runtime.interruption import Interruption, TrainingInterrupted
from nula.runtime.speed import Clock, flops_of, peak_flops
from nula.train.augmentation import crop_and_flip, perturb
from nula.train.checkpoints import Progress, check_folder, load_checkpoint, only_writer, save_checkpoint
from nula.train.optimizers import build_optimizers, build_scheduler
from nula.train.recipe import OPERATORS, Recipe

TIMED_EVERY = 20  # steps between two that are timed in parts; on a GPU each part then waits for the one before
LOGGED_EVERY = 10  # steps between two entries of a tracker
ARCHITECTURE = ("stem_channels", "stem_dropout", "hidden_sizes", "depths")  # what a run may choose of NulaConfig


def dynamo_backend(accelerator: Accelerator) -> str:
    """What compiles the model, as accelerate's launcher names it: "no", "inductor", ..."""
    return accelerator.state.dynamo_plugin.backend.value.lower()


def run_seed(recipe: Recipe, seed: int) -> int:
    """The seed of a run's batches, augmentation and dropout, another for v0 than for v1.

    Under one and the same, v1 would go through v0's first batches again.
    """
    return _mixed(seed, *recipe.name.encode())


def batch_indices(count: int, epoch: int, recipe: Recipe, seed: int) -> torch.Tensor:
    """(steps, batch_size): a permutation of the data for this epoch, without the incomplete last batch."""
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    steps = count // recipe.batch_size
    return torch.randperm(count, generator=generator)[: steps * recipe.batch_size].view(steps, recipe.batch_size)


def _mixed(seed: int, *parts: int) -> int:
    """One generator seed for each (seed, parts): randomness depends on the place in the run, not on what ran before."""
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return seed


def train(
    model: NulaForImageClassification,
    recipe: Recipe,
    data: Split,
    accelerator: Accelerator,
    output_dir: Path,
    *,
    seed: int,
    max_steps: int | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = False,
) -> tuple[NulaForImageClassification, dict]:
    """Train `model` in place, and return it with the log.

    `recipe.batch_size` is shared out over the processes. A checkpoint is written to `output_dir`/checkpoint every
    `checkpoint_steps` (an epoch unless given) and at the end; with `resume` the run goes on from it, on the same CPU to
    the very weights as if it had never stopped. `max_steps` ends the run early, on the schedule of the whole.

    The log holds `epochs`, one entry each, among them the `peak_flops` a second of one process, measured right after
    the epoch, as a machine's speed may change, in the `dtype` of the training; over all epochs `seconds`,
    `images_per_second` and `peak_share`; and `flops_per_image` of the network's convolutions and matrix products,
    forward and backward, without the optimiser's, from which that share follows.

    Raises:
        ValueError: a data set smaller than a batch, a batch that the processes cannot share evenly, a checkpoint of a
            run that was started otherwise, one beyond `max_steps`, or mixed precision fp16.
        FileExistsError, FileNotFoundError, OSError: as `check_folder`, `only_writer`, `load_checkpoint` and
            `save_checkpoint` say.
        FloatingPointError: a loss, a gradient or a weight that is not finite; no checkpoint holds such a one.
        RuntimeError: the processes end with different parameters.
        TrainingInterrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint saved.
    """
    device, processes, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    if recipe.batch_size % processes:
        raise ValueError(f"batch_size {recipe.batch_size} cannot be shared evenly by {processes} processes.")
    steps_per_epoch = len(data.labels) // recipe.batch_size
    if steps_per_epoch == 0:
        raise ValueError(f"{len(data.labels)} images are fewer than one batch of {recipe.batch_size}.")
    if accelerator.mixed_precision == "fp16":
        raise ValueError("mixed precision fp16 is not supported, as two optimisers would share its scaler; take bf16.")
    checkpoint = output_dir / "checkpoint"
    weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    copies = 4 if recipe.restarts else 3  # weights, up to two moments, and the mean over cycles
    check_folder(output_dir, copies * weights_bytes, resume)
    accelerator.wait_for_everyone()

    images, labels = data.images.to(device), data.labels.to(device)
    model = model.to(device, memory_format=torch.channels_last)
    flops = _training_flops(model)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    optimizers = build_optimizers(model, recipe, dtype)
    schedulers = [build_scheduler(optimizer, recipe, steps_per_epoch) for optimizer in optimizers]
    averaged = AveragedModel(model, use_buffers=True)
    original = model  # shares its parameters with the prepared one, which may be wrapped or compiled
    model, *optimizers = accelerator.prepare(model, *optimizers)
    identity = {
        **asdict(recipe),
        "architecture": {field: getattr(original.config, field) for field in ARCHITECTURE},
        "initial_weights": _fingerprint(*original.parameters()),
        "seed": seed,
        "data": data.fingerprint,
        "processes": processes,
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": dynamo_backend(accelerator),
    }
    progress = Progress()
    # The schedulers are not prepared: accelerate would step them once for each process, and a step here is a global
    # batch.
    accelerator.register_for_checkpointing(progress, *schedulers, *([averaged] if recipe.restarts else []))
    if resume:
        load_checkpoint(accelerator, checkpoint, identity)

    draws = run_seed(recipe, seed)
    total = recipe.epochs * steps_per_epoch
    last = total if max_steps is None else min(max_steps, total)
    if last < progress.step:
        raise ValueError(f"max_steps is {max_steps}, and the checkpoint is of step {progress.step} already.")
    accelerator.init_trackers(recipe.name)
    generator = torch.Generator(device=device)
    kinds = torch.arange(len(OPERATORS) + 1, device=device)  # as `perturb` numbers them
    clock = Clock(device)
    model.train()
    bar = tqdm(
        total=last, initial=progress.step, desc=recipe.name, unit="step", disable=not accelerator.is_main_process
    )
    alone = only_writer(output_dir) if accelerator.is_main_process else nullcontext()
    with alone, Interruption() as interruption, bar:
        for epoch, step, indices in _schedule(progress.step, last, len(labels), recipe, draws, device):
            started = time.perf_counter()
            timed = step % TIMED_EVERY == TIMED_EVERY // 2  # not the first step, in which a model may be compiled
            begin = clock.read() if timed else 0.0
            share = indices.chunk(processes)[rank]
            generator.manual_seed(_mixed(draws, epoch, step, rank))
            torch.manual_seed(_mixed(draws, epoch, step, rank, 1))  # dropout draws from the device's own generator
            if recipe.restart_dropout is not None and epoch >= recipe.cycle_ends[0]:
                original.nula.stem.dropout.p = recipe.restart_dropout
            pixels, operators = perturb(crop_and_flip(images, share, recipe, generator), recipe, generator)
            middle = clock.read() if timed else 0.0
            logits = model(normalize(pixels)).logits
            loss = F.cross_entropy(logits, labels[share], label_smoothing=recipe.label_smoothing)
            accelerator.backward(loss)
            # The one copy from the device, before the weights are touched: over all processes the loss, the norm of
            # the gradients, whether any process was asked to stop, and how many images went through each operator.
            norm = get_total_norm([parameter.grad for parameter in original.parameters()])
            asked = loss.new_full((), float(interruption.signum > 0))
            counts = (operators[:, None] == kinds).sum(dim=0)
            status = torch.cat([torch.stack([loss.detach().float(), norm.float(), asked.float()]), counts.float()])
            loss_sum, norm_sum, asked_to_stop, *counts = accelerator.reduce(status, "sum").tolist()
            loss_value = loss_sum / processes
            if not math.isfinite(loss_sum + norm_sum):
                raise FloatingPointError(
                    f"loss {loss_value}, norm of the gradients {norm_sum / processes} at step {step}, learning rate "
                    f"{schedulers[0].get_last_lr()[0]:.3g}, batch {_fingerprint(pixels, labels[share])} (SHA-256 of "
                    f"the pixels and labels of process {rank}); checkpoints are from before it."
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if timed:
                progress.augmentation_seconds += middle - begin
                progress.timed_seconds += clock.read() - begin
            for scheduler in schedulers:
                scheduler.step()
            progress.step = step + 1
            progress.loss_sum += loss_value
            progress.operators = [before + int(count) for before, count in zip(progress.operators, counts)]
            progress.seconds += time.perf_counter() - started
            bar.update()
            bar.set_postfix(loss=f"{loss_value:.3f}", refresh=False)
            if progress.step % LOGGED_EVERY == 0:
                accelerator.log({"loss": loss_value, "learning_rate": schedulers[0].get_last_lr()[0]}, progress.step)
            if progress.step % steps_per_epoch == 0:
                if recipe.restarts and epoch + 1 in recipe.cycle_ends:
                    averaged.update_parameters(original)
                    original.load_state_dict(averaged.module.state_dict())
                entry = {
                    **_epoch_entry(progress, epoch, steps_per_epoch, recipe, schedulers[0]),
                    # Of every epoch, as a run may go on elsewhere.
                    "peak_flops": round(peak_flops(device, dtype)),
                    "dtype": str(dtype).removeprefix("torch."),
                    "machine": device_name(device),
                }
                progress.epochs.append(entry)
                accelerator.print(json.dumps(entry))
                accelerator.log({"images_per_second": entry["images_per_second"]}, progress.step)
                progress.start_epoch()
            if asked_to_stop or progress.step == last or progress.step % (checkpoint_steps or steps_per_epoch) == 0:
                _check_finite(original, progress.step)
                save_checkpoint(accelerator, checkpoint, identity)
            if asked_to_stop:
                raise TrainingInterrupted(interruption.signum or signal.SIGTERM, progress.step, last)
    _check_agreement(model, accelerator)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False, keep_torch_compile=False)  # `original` leaves autocast
    return original, _speed(progress.epochs, flops, processes)


def _training_flops(model: NulaForImageClassification) -> int:
    """Floating-point operations of the network on one image, forward and backward."""
    pixels = torch.zeros(1, model.config.num_channels, SIDE, SIDE, device=model.device)
    training = model.training
    model.eval()  # batch statistics must not see these pixels
    flops = flops_of(lambda: model(pixels).logits.sum().backward())
    model.train(training)
    model.zero_grad(set_to_none=True)
    return flops


def _epoch_entry(progress: Progress, epoch: int, steps: int, recipe: Recipe, scheduler: LRScheduler) -> dict:
    none, *operators = progress.operators
    return {
        "epoch": epoch + 1,
        "loss": round(progress.loss_sum / steps, 5),
        "learning_rate": scheduler.get_last_lr()[0],  # after the epoch
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(steps * recipe.batch_size / progress.seconds, 1),
        "augmentation_share": round(progress.augmentation_seconds / progress.timed_seconds, 4)
        if progress.timed_seconds
        else None,
        "operators": {"none": none, **dict(zip(OPERATORS, operators))},  # images that went through each
    }


def _speed(epochs: list[dict], flops: int, processes: int) -> dict:
    """The epochs, and over all of them: seconds, images a second, and the share of what the processes could do."""
    images_per_second, share = speed_of(epochs, flops, processes) if epochs else (None, None)
    return {
        "flops_per_image": flops,
        "epochs": epochs,
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "images_per_second": images_per_second and round(images_per_second, 1),
        "peak_share": share and round(share, 4),
    }


def _fingerprint(*tensors: torch.Tensor) -> str:
    arrays = (tensor.detach().cpu().contiguous().numpy() for tensor in tensors)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _check_finite(model: torch.nn.Module, step: int) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise FloatingPointError(
            f"after step {step} weights or batch statistics are not finite; the last checkpoint is from before it."
        )


def _check_agreement(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Raise RuntimeError unless all processes hold the same parameters, to the bit."""
    with torch.no_grad():
        parameters = torch.cat([parameter.flatten() for parameter in model.parameters()])
    gathered = accelerator.gather(parameters.unsqueeze(0))
    if not (gathered == gathered[0]).all():
        raise RuntimeError("the processes ended with different parameters.")


def _schedule(
    first: int, last: int, count: int, recipe: Recipe, seed: int, device: torch.device
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(epoch, step, indices of the global batch) for the steps from `first` up to, not including, `last`.

    The indices of an epoch go to the device together.
    """
    steps_per_epoch = count // recipe.batch_size
    for epoch in range(first // steps_per_epoch, recipe.epochs):
        batches = batch_indices(count, epoch, recipe, seed).to(device)
        for step in range(max(first, epoch * steps_per_epoch), min(last, (epoch + 1) * steps_per_epoch)):
            yield epoch, step, batches[step - epoch * steps_per_epoch]
