"""A polite end of a long run."""

import signal
import time
from types import FrameType

SAME_REQUEST = 5.0  # seconds; a launcher passes on the signal that its whole process group got already


class Interruption:
    """Notes SIGINT (Ctrl-C) and SIGTERM instead of dying of them, as a context.

    `signum` is 0 until one came. Another one some seconds later acts as usual, for steps that take too long; a call
    into a library that never returns holds that one off, too.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum = 0

    def __enter__(self) -> "Interruption":
        self.signum, self._noted = 0, 0.0
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._noted = signum, time.monotonic()
        elif time.monotonic() - self._noted > SAME_REQUEST:
            self.__exit__()
            signal.raise_signal(signum)


class TrainingInterrupted(Exception):
    """Training was asked to stop, by signal `signum`, and has saved a checkpoint after `step` steps of `total`."""

    def __init__(self, signum: int, step: int, total: int):
        super().__init__(f"interrupted after step {step} of {total}")
        self.signum = signum
