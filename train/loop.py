"""The one training loop, whatever the recipe."""

import signal
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from nula.data import Split
from nula.modeling_nula import NulaForImageClassification
from nula.runtime.interruption import TrainingInterrupted
from nula.train.run import Run, RunSettings


def _start_trackers(accelerator: Accelerator, name: str) -> None:
    try:
        accelerator.init_trackers(name)
    except Exception as error:  # each tracker has errors of its own, such as one of a log-in that is missing
        raise ValueError(f"a tracker cannot start: {type(error).__name__}: {error}") from error


def train(
    model: NulaForImageClassification,
    data: Split,
    accelerator: Accelerator,
    settings: RunSettings,
    *,
    resume: bool = False,
) -> tuple[NulaForImageClassification, dict[str, Any]]:
    """Train `model` in place, and return it with the log.

    A checkpoint is written every `settings.checkpoint_steps` and at the end; with `resume` the run goes on from it, if
    there is one.

    The log holds `epochs`, one entry each, among them the `peak_flops` a second of one process, measured right after
    the epoch in the `dtype` of the training; over all epochs `seconds`, `images_per_second` and `peak_share`; and
    `flops_per_image` of the network's convolutions and matrix products, forward and backward, without the optimiser's,
    from which that share follows; with `settings.budget` its `minutes`, and the `cosine_epochs` that fit.

    Raises:
        ValueError: as `Run` and `Run.resume` say.
        FileExistsError, OSError: as `Run.start`, `Run.resume`, `Run.alone` and `Run.save` say.
        FloatingPointError: a loss, a gradient or a weight that is not finite; no checkpoint holds such a one.
        RuntimeError: the processes end with different parameters.
        TrainingInterrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint saved.
    """
    run, name, main = Run(model, data, accelerator, settings), settings.recipe.name, accelerator.is_main_process
    if resume:
        run.resume()
    else:
        run.start()
    _start_trackers(accelerator, name)
    bar = tqdm(total=run.last, initial=run.progress.step, desc=name, unit="step", disable=not main)
    with run.alone(), run.interruption, bar:
        while run.progress.step < run.last:
            status = run.step()
            bar.update()
            if status is not None:
                bar.set_postfix(loss=f"{status.loss:.3f}", refresh=False)
            if run.at_epoch_end:
                run.end_epoch()
            run.fit_epochs()  # after the epoch's entry, as it saves
            bar.total = run.last
            stop = status is not None and status.stop
            if stop or run.at_checkpoint:
                run.save()
            if stop:
                raise TrainingInterrupted(run.interruption.signum or signal.SIGTERM, run.progress.step, run.last)
    return run.finish()
