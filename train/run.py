"""A run: what is trained, by what, how far it is, and the folder that keeps it."""

import hashlib
import json
import math
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch.nn import functional as F
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from nula.data import Split
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification
from nula.records.provenance import device_name
from nula.runtime.interruption import Interruption
from nula.runtime.speed import Clock, flops_of, peak_flops
from nula.train.augmentation import augment
from nula.train.budget import MEASURED_STEPS, TimeBudget, epochs_within
from nula.train.checkpoints import check_folder, last_checkpoint, load_checkpoint, only_writer, save_checkpoint
from nula.train.checks import check_agreement, check_finite, check_setting, square_images
from nula.train.draws import batch_indices, mixed, run_seed
from nula.train.net import architecture, average_statistics, set_stem_dropout, whiten_stem
from nula.train.optimizers import build_optimizers, build_scheduler
from nula.train.progress import Progress
from nula.train.recipe import OPERATORS, Recipe

TIMED_EVERY = 20  # steps between two that are timed in parts; ten times as many on a GPU, which then waits for them
READ_EVERY = 10  # steps on a GPU between two whose losses are read, for which the host waits; on a CPU all are
LOGGED_EVERY = 10  # steps between two entries of a tracker


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is done.

    Args:
        recipe: what is trained by; its batch is shared out over the processes.
        output_dir: folder of the run; its checkpoint lies in `output_dir`/checkpoint.
        seed: of batches, augmentation and dropout.
        max_steps: end the run after so many steps, on the schedule of the whole.
        checkpoint_steps: steps between two checkpoints; an epoch unless given.
        budget: if given, `recipe.cosine_epochs` become as many as fit into it, once the run's speed is known.
    """

    recipe: Recipe
    output_dir: Path
    seed: int = 0
    max_steps: int | None = None
    checkpoint_steps: int | None = None
    budget: TimeBudget | None = None


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch: pixels (B, 3, H, W) in [0, 1], labels (B,), and operators (B,) by number."""

    pixels: torch.Tensor
    labels: torch.Tensor
    operators: torch.Tensor


@dataclass(frozen=True)
class StepStatus:
    """What the steps since the last status gave, over all processes; on a CPU there is one for every step.

    Args:
        steps: how many.
        loss: mean over them.
        gradient_norm: mean over them and the processes.
        stop: whether any process was asked to stop.
        operators: images that went through no operator, and through each.
    """

    steps: int
    loss: float
    gradient_norm: float
    stop: bool
    operators: list[int]


class Run:
    """The training of one model, by one recipe, on one data set.

    A run begins by `start` or goes on by `resume`. Then `step` trains on one batch, `end_epoch` ends an epoch after its
    last step, and `save` keeps the state. `finish` returns the model and the log.

    Args:
        model: trained in place.
        data: images of one square size, at least a batch of them, and of at least two classes.
        accelerator: of all processes.
        settings: recipe, folder, seed and lengths.

    Raises:
        ValueError: the data or the batch do not fit the recipe or the processes; a mixed precision but bf16.
    """

    def __init__(
        self, model: NulaForImageClassification, data: Split, accelerator: Accelerator, settings: RunSettings
    ) -> None:
        self.settings, self.recipe, self.accelerator = settings, settings.recipe, accelerator
        check_setting(data, accelerator, settings.recipe)
        self.device = accelerator.device
        self.steps_per_epoch = len(data.labels) // self.recipe.batch_size
        self.progress, self.interruption = Progress(), Interruption()
        on_cpu = self.device.type == "cpu"
        self._read_every, self._timed_every = (1, TIMED_EVERY) if on_cpu else (READ_EVERY, 10 * TIMED_EVERY)
        self._unread: list[torch.Tensor] = []  # what `_measures` gave in the steps since the last status
        self._timed_from = (0, 0.0)  # the step, and when it began, from which on steps are timed for the budget
        self._images, self._labels = square_images(data).to(self.device), data.labels.to(self.device)
        self._dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self._prepare(model.to(self.device, memory_format=torch.channels_last), data.fingerprint)
        self._draws = run_seed(self.recipe, settings.seed)
        self._generator = torch.Generator(device=self.device)
        self._kinds = torch.arange(len(OPERATORS) + 1, device=self.device)  # as `perturb` numbers them
        self._clock = Clock(self.device)
        self._epoch, self._batches = -1, torch.empty(0)

    def _prepare(self, model: NulaForImageClassification, fingerprint: str) -> None:
        """Make optimisers, schedules and the mean over cycles, and hand to accelerate what it wraps and keeps."""
        initial_weights = _fingerprint(*model.parameters())  # before whitening, whose last bits are the machine's
        if self.recipe.whitening_epsilon is not None:
            whiten_stem(model, self._images, self.recipe.whitening_epsilon)
        self.flops = _training_flops(model, self._images.shape[1])
        optimizers = build_optimizers(model, self.recipe, self._dtype)
        self._scheduled = optimizers  # themselves, which accelerate wraps
        self._schedulers = self._build_schedulers()
        self._averaged = AveragedModel(model, use_buffers=True)
        self.model = model  # shares its parameters with the prepared one, which may be wrapped or compiled
        self._prepared, *self._optimizers = self.accelerator.prepare(model, *optimizers)
        self._prepared.train()
        self._identity = {  # what must not change when the run is resumed
            **asdict(self.recipe),
            "architecture": architecture(model.config),
            "initial_weights": initial_weights,
            "seed": self.settings.seed,
            "data": fingerprint,
            "processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "dynamo_backend": dynamo_backend(self.accelerator),
        }
        if self.settings.budget is not None:
            self._identity["cosine_epochs"] = f"as many as fit into {self.settings.budget.minutes:g} minutes"
        # The schedulers are not prepared: accelerate would step them once for each process, and a step here is a global
        # batch.
        averaged = [self._averaged] if self.recipe.restarts else []
        self.accelerator.register_for_checkpointing(self.progress, *self._schedulers, *averaged)

    def _build_schedulers(self) -> list[SequentialLR]:
        return [build_scheduler(optimizer, self.recipe, self.steps_per_epoch) for optimizer in self._scheduled]

    def start(self) -> None:
        """Begin the run.

        Raises:
            FileExistsError, OSError: as `check_folder` says.
        """
        self._check_folder(resume=False)
        self._timed_from = 0, self._clock.read()

    def resume(self) -> None:
        """Go on from the last checkpoint, on the same CPU to the very weights as if the run had never stopped.

        Where there is none yet, begin: one command can then be repeated until the run is done.

        Raises:
            ValueError: the checkpoint is of a run that was started otherwise, or of a step beyond `max_steps`.
            FileExistsError, OSError: as `check_folder` and `load_checkpoint` say.
        """
        if last_checkpoint(self._checkpoint) is None:
            self.start()
            self.accelerator.print(f"there is no checkpoint in {self.settings.output_dir}: beginning.")
            return
        self._check_folder(resume=True)
        load_checkpoint(self.accelerator, self._checkpoint, self._identity)
        self._timed_from = self.progress.step, self._clock.read()
        if self.progress.cosine_epochs is not None:
            self.recipe = replace(self.recipe, cosine_epochs=self.progress.cosine_epochs)
        if self.last < self.progress.step:
            raise ValueError(
                f"max_steps is {self.settings.max_steps}, and the checkpoint is of step {self.progress.step} already."
            )

    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder meanwhile; FileExistsError where one is at work there."""
        return only_writer(self.settings.output_dir) if self.accelerator.is_main_process else nullcontext()

    @property
    def last(self) -> int:
        """The number of the run's last step."""
        total = self.recipe.epochs * self.steps_per_epoch
        return total if self.settings.max_steps is None else min(self.settings.max_steps, total)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last one of an epoch."""
        return self.progress.step % self.steps_per_epoch == 0

    @property
    def at_checkpoint(self) -> bool:
        """Whether the last step is one to save after."""
        return self._saves_after(self.progress.step)

    def step(self) -> StepStatus | None:
        """Train on the next batch, and tell of the steps since the last status if they are read now.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the weights are then as before the step, but on a
                GPU, where only one step in READ_EVERY looks.
        """
        started, progress = time.perf_counter(), self.progress
        half = self._timed_every // 2
        timed = progress.step % self._timed_every == half  # not the first, in which a model may be compiled
        begin = self._clock.read() if timed else 0.0
        batch = self._batch()
        middle = self._clock.read() if timed else 0.0
        logits = self._prepared(normalize(batch.pixels)).logits
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.recipe.label_smoothing)
        if self.recipe.consistency_weight:
            loss = loss + self.recipe.consistency_weight * divergence(logits, self.recipe.views)
        self.accelerator.backward(loss)
        self._unread.append(self._measures(loss, batch.operators))
        status = self._status() if self._reads_at(progress.step) else None
        if status is not None and not math.isfinite(status.loss + status.gradient_norm):
            raise FloatingPointError(
                f"loss {status.loss}, norm of the gradients {status.gradient_norm} at {self._told_steps(status)}, "
                f"learning rate {self._learning_rate:.3g}, batch {_fingerprint(batch.pixels, batch.labels)} (SHA-256 "
                f"of pixels and labels of process {self.accelerator.process_index}); checkpoints are from before it."
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average_statistics(self.model, self.accelerator)
        if timed:
            progress.augmentation_seconds += middle - begin
            progress.timed_seconds += self._clock.read() - begin
        for scheduler in self._schedulers:
            scheduler.step()
        progress.add_step(time.perf_counter() - started)
        if status is not None:
            progress.add_status(status.loss * status.steps, status.operators)
            if progress.step % LOGGED_EVERY == 0:
                self.accelerator.log({"loss": status.loss, "learning_rate": self._learning_rate}, progress.step)
        return status

    def fit_epochs(self) -> None:
        """Fix the number of epochs by the time that the first steps took, once they are done.

        The schedule of the learning rate is then that of a recipe with that number, also for the steps done before.

        Raises:
            ValueError: the budget is too small for the shortest run.
            FloatingPointError, OSError: as `save` says.
        """
        budget, recipe, step = self.settings.budget, self.recipe, self.progress.step
        if budget is None or self.progress.cosine_epochs is not None:
            return
        count = min(MEASURED_STEPS, recipe.warmup_epochs * self.steps_per_epoch, self.last)
        if step == count // 3:
            self._timed_from = step, self._clock.read()
        if step < count:
            return
        first, since = self._timed_from
        a_step = (self._clock.read() - since) / (count - first)
        peak_flops(self.device, self._dtype)  # what ends an epoch; the first call warms up
        begin = self._clock.read()
        peak_flops(self.device, self._dtype)
        end = self._clock.read() - begin
        saving = self._saving_seconds()
        an_epoch = self.steps_per_epoch * (a_step + saving / self._checkpoint_steps) + end
        # All processes go by the main one's clock.
        seconds = broadcast(torch.tensor([budget.seconds_left, an_epoch, saving], device=self.device)).tolist()
        others = recipe.epochs - recipe.cosine_epochs
        epochs = epochs_within(budget, *seconds, others + 1, step / self.steps_per_epoch)
        self.recipe = replace(recipe, cosine_epochs=epochs - others)
        self.progress.cosine_epochs = epochs - others
        for optimizer in self._scheduled:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"]
        fitted = self._build_schedulers()
        for scheduler, kept in zip(fitted, self._schedulers, strict=True):
            for _ in range(step):
                scheduler.step()
            kept.load_state_dict(scheduler.state_dict())  # in place, as accelerate keeps it in checkpoints
        self.save()
        self.accelerator.print(
            f"{epochs} epochs fit into {budget.minutes:g} minutes, at {an_epoch:.3g} s an epoch: as with --recipe "
            f"cosine_epochs={self.recipe.cosine_epochs}."
        )

    def end_epoch(self) -> None:
        """Log the epoch; at the end of a cycle of the learning rate, go on from the mean over all cycle ends."""
        entry = {
            **self.progress.entry(self.steps_per_epoch, self._learning_rate),
            # Of every epoch, as a run may go on elsewhere, and a machine's speed may change.
            "peak_flops": round(peak_flops(self.device, self._dtype)),
            "dtype": str(self._dtype).removeprefix("torch."),
            "machine": device_name(self.device),
        }
        if self.recipe.restarts and entry["epoch"] in self.recipe.cycle_ends:
            self._averaged.update_parameters(self.model)
            self.model.load_state_dict(self._averaged.module.state_dict())
        self.progress.epochs.append(entry)
        if self.accelerator.is_main_process:
            tqdm.write(json.dumps(entry))  # on a line of its own, above the progress bar
        self.accelerator.log({"images_per_second": entry["images_per_second"]}, self.progress.step)
        self.progress.start_epoch()

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            FloatingPointError: a weight or a batch statistic is not finite.
            OSError: as `save_checkpoint` says.
        """
        check_finite(self.model, self.progress.step)
        save_checkpoint(self.accelerator, self._checkpoint, self._identity)

    def finish(self) -> tuple[NulaForImageClassification, dict[str, Any]]:
        """Return the trained model, which computes in float32, and the log (see `train`).

        Raises:
            RuntimeError: the processes ended with different parameters.
        """
        check_agreement(self._prepared, self.accelerator)
        self.accelerator.unwrap_model(self._prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
        log = self.progress.log(self.flops, self.accelerator.num_processes)
        budget = self.settings.budget
        if budget is not None:
            log = {"minutes": budget.minutes, "cosine_epochs": self.recipe.cosine_epochs, **log}
        return self.model, log

    @property
    def _checkpoint(self) -> Path:
        return self.settings.output_dir / "checkpoint"

    @property
    def _checkpoint_steps(self) -> int:
        return self.settings.checkpoint_steps or self.steps_per_epoch

    @property
    def _learning_rate(self) -> float:
        return float(self._schedulers[0].get_last_lr()[0])

    def _check_folder(self, resume: bool) -> None:
        weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        copies = 4 if self.recipe.restarts else 3  # weights, up to two moments, and the mean over cycles
        check_folder(self.settings.output_dir, copies * weights_bytes, resume)
        self.accelerator.wait_for_everyone()

    def _batch(self) -> Batch:
        """Draw this process's share of the next batch, augmented, and seed the dropout of the step."""
        step, rank, recipe = self.progress.step, self.accelerator.process_index, self.recipe
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # the indices of an epoch go to the device together
            drawn = batch_indices(len(self._labels), epoch, recipe, self._draws)
            self._epoch, self._batches = epoch, drawn.to(self.device)
        share = self._batches[place].chunk(self.accelerator.num_processes)[rank]
        self._generator.manual_seed(mixed(self._draws, epoch, step, rank))
        torch.manual_seed(mixed(self._draws, epoch, step, rank, 1))  # dropout draws from the device's own generator
        if recipe.restart_dropout is not None and epoch >= recipe.cycle_ends[0]:
            set_stem_dropout(self.model, recipe.restart_dropout)
        shown = share.repeat(recipe.views)  # the whole share once, then again
        pixels, operators = augment(self._images, shown, recipe, self._generator)
        return Batch(pixels, self._labels[shown], operators)

    def _saving_seconds(self) -> float:
        """Write the state once for the time that it takes, beside where checkpoints are."""
        begin = time.monotonic()
        timed = self._checkpoint.with_name("timed")
        save_checkpoint(self.accelerator, timed, self._identity)
        if self.accelerator.is_main_process:
            shutil.rmtree(timed, ignore_errors=True)
        return time.monotonic() - begin

    def _saves_after(self, step: int) -> bool:
        return step == self.last or step % self._checkpoint_steps == 0

    def _reads_at(self, step: int) -> bool:
        """Whether the losses are read in the step that follows `step` others."""
        after = step + 1
        return after % self._read_every == 0 or after % self.steps_per_epoch == 0 or self._saves_after(after)

    def _measures(self, loss: torch.Tensor, operators: torch.Tensor) -> torch.Tensor:
        """Loss, norm of the gradients, whether to stop, and images through each operator, of this process's step."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.requires_grad]
        asked = torch.full_like(loss.detach(), float(self.interruption.signum > 0), dtype=torch.float32)
        counts = (operators[:, None] == self._kinds).sum(dim=0)
        norm = get_total_norm(gradients)
        return torch.cat([torch.stack([loss.detach().float(), norm.float(), asked]), counts.float()])

    def _status(self) -> StepStatus:
        """Sum up the steps since the last status over all processes, by one copy from the device."""
        steps, processes = len(self._unread), self.accelerator.num_processes
        own = torch.stack(self._unread).sum(dim=0)
        self._unread = []
        loss, norm, asked, *images = self.accelerator.reduce(own, "sum").tolist()
        scale = steps * processes
        return StepStatus(steps, loss / scale, norm / scale, asked > 0, [int(count) for count in images])

    def _told_steps(self, status: StepStatus) -> str:
        last = self.progress.step
        return f"step {last}" if status.steps == 1 else f"one of the steps {last - status.steps + 1} to {last}"


def divergence(logits: torch.Tensor, views: int) -> torch.Tensor:
    """Return the Jensen-Shannon divergence in nats between the answers to the views of an image, its mean over images.

    `logits` (views · B, classes) hold those to the first view of all images, then to the second, and so on.
    """
    logarithms = F.log_softmax(logits.float(), dim=1).unflatten(0, (views, -1))  # (views, B, classes)
    mixture = torch.logsumexp(logarithms, dim=0) - math.log(views)
    return (logarithms.exp() * (logarithms - mixture)).sum(dim=2).mean()


def dynamo_backend(accelerator: Accelerator) -> str:
    """Return what compiles the model, as accelerate's launcher names it: "no", "inductor", ..."""
    backend: str = accelerator.state.dynamo_plugin.backend.value
    return backend.lower()


def _training_flops(model: NulaForImageClassification, side: int) -> int:
    """Floating-point operations of the network on one image of `side` pixels a side, forward and backward."""
    pixels = torch.zeros(1, model.config.num_channels, side, side, device=model.device)
    training = model.training
    model.eval()  # batch statistics must not see these pixels
    flops = flops_of(lambda: model(pixels).logits.sum().backward())
    model.train(training)
    model.zero_grad(set_to_none=True)
    return flops


def _fingerprint(*tensors: torch.Tensor) -> str:
    arrays = (tensor.detach().cpu().contiguous().numpy() for tensor in tensors)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
