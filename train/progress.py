"""How far a run is, and its log."""

from collections.abc import Sequence
from typing import Any

from nula.records.provenance import speed_of
from nula.train.recipe import OPERATORS


class Progress:
    """What a resumed run must know besides weights and optimisers: the step, sums over the epoch, the log.

    Plain numbers over all processes, so that the main process may save them for all.
    """

    def __init__(self) -> None:
        self.step = 0
        self.cosine_epochs: int | None = None  # the recipe's, where they were fitted to a time
        self.epochs: list[dict[str, Any]] = []
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin the sums over an epoch anew."""
        self.loss_sum = self.seconds = self.timed_seconds = self.augmentation_seconds = 0.0
        self.operators = [0] * (len(OPERATORS) + 1)  # images that went through no operator, and through each

    def add_step(self, seconds: float) -> None:
        """Count a step that was done, and its duration."""
        self.step += 1
        self.seconds += seconds

    def add_status(self, loss_sum: float, operators: Sequence[int]) -> None:
        """Add the losses of some steps, and the images that went through no operator and through each."""
        self.loss_sum += loss_sum
        self.operators = [before + count for before, count in zip(self.operators, operators, strict=True)]

    def entry(self, steps: int, learning_rate: float) -> dict[str, Any]:
        """Return the log's entry of an epoch of so many `steps` that has just ended; each view counts as an image."""
        none, *operators = self.operators
        return {
            "epoch": self.step // steps,
            "loss": round(self.loss_sum / steps, 5),
            "learning_rate": learning_rate,  # after the epoch
            "seconds": round(self.seconds, 2),
            "images_per_second": round(sum(self.operators) / self.seconds, 1),
            "augmentation_share": round(self.augmentation_seconds / self.timed_seconds, 4)
            if self.timed_seconds
            else None,
            "operators": {"none": none, **dict(zip(OPERATORS, operators, strict=True))},  # images through each
        }

    def log(self, flops: int, processes: int) -> dict[str, Any]:
        """Return the epochs, and over all of them: seconds, images a second, the share of what the processes could do.

        `flops` are the network's operations on one image, forward and backward.
        """
        images_per_second, share = speed_of(self.epochs, flops, processes) if self.epochs else (None, None)
        return {
            "flops_per_image": flops,
            "epochs": self.epochs,
            "seconds": round(sum(epoch["seconds"] for epoch in self.epochs), 1),
            "images_per_second": images_per_second and round(images_per_second, 1),
            "peak_share": share and round(share, 4),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        vars(self).update(state)
