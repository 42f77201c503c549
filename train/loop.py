"""The one training loop, of v0 and v1 alike."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nula.dataset import Split
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification
from nula.train.augmentation import crop_and_flip, perturb
from nula.train.recipe import Recipe

TIMED_EVERY = 20  # steps between two that are timed in parts; on a GPU each part then waits for the one before


class Progress:
    """What a resumed run must know besides weights and optimiser: the step, sums over the epoch, the log.

    `identity` is what must not change when a run is resumed; loading the state of another run raises ValueError.
    """

    def __init__(self, identity: dict):
        self.identity = identity
        self.step = 0
        self.epochs: list[dict] = []
        self.start_epoch()

    def start_epoch(self) -> None:
        self.loss_sum = self.seconds = self.timed_seconds = self.augmentation_seconds = 0.0

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        for name, value in self.identity.items():
            if state["identity"][name] != value:
                raise ValueError(
                    f"this is another run than the checkpoint's: {name} is {value}, was {state['identity'][name]}."
                )
        vars(self).update(state)


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays convolution and classifier weights alone: a decayed BN scale or bias only loses accuracy."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> SequentialLR:
    """Linear warm-up, cosine annealing to 0 and, if the recipe has it, once more; stepped after every batch."""
    warmup_steps, cosine_steps = recipe.warmup_epochs * steps_per_epoch, recipe.cosine_epochs * steps_per_epoch
    schedules = [LinearLR(optimizer, total_iters=warmup_steps), CosineAnnealingLR(optimizer, T_max=cosine_steps)]
    milestones = [warmup_steps]
    if recipe.restart_epochs:
        schedules.append(CosineAnnealingLR(optimizer, T_max=recipe.restart_epochs * steps_per_epoch))
        milestones.append(warmup_steps + cosine_steps)
    return SequentialLR(optimizer, schedules, milestones=milestones)


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
    resume: bool = False,
) -> tuple[NulaForImageClassification, list[dict]]:
    """Train `model` and return the running average of its weights with the log, one entry an epoch.

    `recipe.batch_size` is shared out over the processes. A checkpoint is written to `output_dir`/checkpoint after each
    epoch and at the end; with `resume` the run goes on from it, to the same weights as if it had never stopped.
    `max_steps` ends the run early, on the schedule of the whole.

    Raises:
        ValueError: a data set smaller than a batch, a batch that the processes cannot share evenly, a checkpoint of a
            run with another recipe, seed, data set or number of processes.
        FileNotFoundError: `resume` without a checkpoint.
        FloatingPointError: a loss that is not finite.
    """
    device, processes, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    if recipe.batch_size % processes:
        raise ValueError(f"batch_size {recipe.batch_size} cannot be shared evenly by {processes} processes.")
    steps_per_epoch = len(data.labels) // recipe.batch_size
    if steps_per_epoch == 0:
        raise ValueError(f"{len(data.labels)} images are fewer than one batch of {recipe.batch_size}.")
    images, labels = data.images.to(device), data.labels.to(device)

    model = model.to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay), use_buffers=True)
    optimizer = build_optimizer(model, recipe)
    scheduler = build_scheduler(optimizer, recipe, steps_per_epoch)
    model, optimizer = accelerator.prepare(model, optimizer)
    identity = {"recipe": asdict(recipe), "seed": seed, "data": data.fingerprint, "processes": processes}
    progress = Progress(identity)
    # Progress comes first, to refuse the checkpoint of another run before its schedule is loaded. The scheduler is not
    # prepared: accelerate would step it once for each process, and a step here is a global batch.
    accelerator.register_for_checkpointing(progress, average, scheduler)
    checkpoint = output_dir / "checkpoint"
    if resume:
        accelerator.load_state(str(_last_checkpoint(checkpoint)))

    total = recipe.epochs * steps_per_epoch
    last = total if max_steps is None else min(max_steps, total)
    generator = torch.Generator(device=device)
    clock = _Clock(device)
    model.train()
    bar = tqdm(
        total=last, initial=progress.step, desc=recipe.name, unit="step", disable=not accelerator.is_main_process
    )
    for epoch, step, indices in _schedule(progress.step, last, len(labels), recipe, seed):
        started = time.perf_counter()
        timed = step % TIMED_EVERY == 0
        begin = clock.read() if timed else 0.0
        share = indices.chunk(processes)[rank].to(device)
        generator.manual_seed(_mixed(seed, epoch, step, rank))
        pixels = perturb(crop_and_flip(images, share, recipe, generator), recipe, generator)
        middle = clock.read() if timed else 0.0
        logits = model(normalize(pixels)).logits
        loss = F.cross_entropy(logits, labels[share], label_smoothing=recipe.label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(accelerator.unwrap_model(model))
        if timed:
            progress.augmentation_seconds += middle - begin
            progress.timed_seconds += clock.read() - begin
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise FloatingPointError(
                f"loss {loss_value} at step {step}, learning rate {scheduler.get_last_lr()[0]:.3g}."
            )
        scheduler.step()
        progress.step = step + 1
        progress.loss_sum += loss_value
        progress.seconds += time.perf_counter() - started
        bar.update()
        bar.set_postfix(loss=f"{loss_value:.3f}", refresh=False)
        if progress.step % steps_per_epoch == 0:
            progress.epochs.append(
                {
                    "epoch": epoch + 1,
                    "loss": round(progress.loss_sum / steps_per_epoch, 5),  # of the main process's share
                    "learning_rate": scheduler.get_last_lr()[0],  # after the epoch
                    "seconds": round(progress.seconds, 2),
                    "images_per_second": round(steps_per_epoch * recipe.batch_size / progress.seconds, 1),
                    "augmentation_share": round(progress.augmentation_seconds / progress.timed_seconds, 4)
                    if progress.timed_seconds
                    else None,
                }
            )
            accelerator.print(json.dumps(progress.epochs[-1]))
            progress.start_epoch()
            _save_checkpoint(accelerator, checkpoint)
    bar.close()
    if progress.step % steps_per_epoch:
        _save_checkpoint(accelerator, checkpoint)
    _check_agreement(model, accelerator)
    return average.module, progress.epochs


def _check_agreement(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Raise RuntimeError unless all processes hold the same parameters, to the bit."""
    with torch.no_grad():
        parameters = torch.cat([parameter.flatten() for parameter in model.parameters()])
    gathered = accelerator.gather(parameters.unsqueeze(0))
    if not (gathered == gathered[0]).all():
        raise RuntimeError("the processes ended with different parameters.")


def _schedule(first: int, last: int, count: int, recipe: Recipe, seed: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(epoch, step, indices of the global batch) for the steps from `first` up to, not including, `last`."""
    steps_per_epoch = count // recipe.batch_size
    for epoch in range(first // steps_per_epoch, recipe.epochs):
        batches = batch_indices(count, epoch, recipe, seed)
        for step in range(max(first, epoch * steps_per_epoch), min(last, (epoch + 1) * steps_per_epoch)):
            yield epoch, step, batches[step - epoch * steps_per_epoch]


class _Clock:
    """Seconds, after the device has finished what it was given."""

    def __init__(self, device: torch.device):
        self.synchronize = (lambda: torch.accelerator.synchronize(device)) if device.type != "cpu" else (lambda: None)

    def read(self) -> float:
        self.synchronize()
        return time.perf_counter()


def _last_checkpoint(checkpoint: Path) -> Path:
    """`checkpoint`, or the one before it if a run was killed just as it swapped the two."""
    previous = checkpoint.with_name("checkpoint.old")
    if not checkpoint.is_dir() and not previous.is_dir():
        raise FileNotFoundError(f"there is no checkpoint to resume from at {checkpoint}; start without --resume.")
    return checkpoint if checkpoint.is_dir() else previous


def _save_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Write beside the old checkpoint and swap: a run that is killed while saving keeps one that is whole."""
    written, previous = checkpoint.with_name("checkpoint.new"), checkpoint.with_name("checkpoint.old")
    if accelerator.is_main_process:
        shutil.rmtree(written, ignore_errors=True)  # what a killed run left
    accelerator.wait_for_everyone()
    accelerator.save_state(str(written))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(previous, ignore_errors=True)
        if checkpoint.exists():
            checkpoint.rename(previous)
        written.rename(checkpoint)
        shutil.rmtree(previous, ignore_errors=True)
    accelerator.wait_for_everyone()
