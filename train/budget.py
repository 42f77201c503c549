"""How many epochs fit into a number of minutes."""

import math
import time
from dataclasses import dataclass, field

MEASURED_STEPS = 30  # or as many as the warm-up has; the first third, in which a model may be compiled, is not timed
RESERVE = 0.03  # of the minutes, as machines do not keep their speed


@dataclass(frozen=True)
class TimeBudget:
    """The time that a run may take, from the start of its process to its saved weights.

    What follows them, measuring images that were held out and pushing, is not in it.

    Args:
        minutes: of wall-clock time, positive.
        started: when the run's process began, on `time.monotonic`'s clock; now, less the time that the process has
            computed, unless given.
    """

    minutes: float
    started: float = field(default_factory=lambda: time.monotonic() - time.process_time())

    @property
    def seconds_left(self) -> float:
        """What is left of it, less the reserve."""
        return 60 * self.minutes * (1 - RESERVE) - (time.monotonic() - self.started)


def epochs_within(budget: TimeBudget, left: float, epoch: float, final: float, least: int, done: float) -> int:
    """Return how many epochs a run can have in all.

    Args:
        budget: for the error.
        left: seconds of it that are left.
        epoch: seconds that an epoch takes, checkpoints included.
        final: seconds that saving takes at the end.
        least: epochs that the recipe has beside those that can be chosen, and one.
        done: epochs that are done already, a fraction.

    Raises:
        ValueError: not even `least` of them fit; the message says how long they would take.
    """
    epochs = int(done + (left - final) / epoch)
    if epochs < least:
        needed = (budget.minutes * 60 - left + (least - done) * epoch + final) / (1 - RESERVE) / 60
        raise ValueError(
            f"--minutes {budget.minutes:g} are too few: an epoch takes {epoch:.3g} s on this machine, and the recipe "
            f"has at least {least}, so that it needs {math.ceil(100 * needed) / 100:.2f} minutes or more."
        )
    return epochs
