"""How fast a run is, against what its machine can do."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

MEASURED_SECONDS = 2.0


class Clock:
    """Seconds, after the device has finished what it was given."""

    def __init__(self, device: torch.device):
        self.device = device

    def read(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product in `dtype`: the fastest of ten.

    Where ten take longer than MEASURED_SECONDS it is that of as many as they allow, of one at least.

    On NVIDIA GPUs in TF32 where cuDNN's convolutions are, which float32 lets them be unless told otherwise.
    """
    side = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    clock = Clock(device)
    seconds: list[float] = []
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    while len(seconds) < 2 or (len(seconds) < 11 and sum(seconds) < MEASURED_SECONDS):
        begin = clock.read()
        left @ right
        seconds.append(clock.read() - begin)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * side**3 / min(seconds[1:])  # the first one warms up


def flops_of(compute: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and matrix products in `compute()`, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())
