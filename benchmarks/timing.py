"""Times of several candidates in one run, taken in turns, so that what slows the machine slows all of them."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from nula.records.provenance import library_versions, processor_name

Candidates = dict[str, Callable[[], object]]


def interleaved(candidates: Candidates, rounds: int, progress: tqdm | None = None) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one call that is not timed; each round has an order of its own."""
    names, seconds = list(candidates), {name: [] for name in candidates}
    order = random.Random(0)
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            begin = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - begin)
            if progress is not None:
                progress.update()
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """The median over rounds of how many times as long `name` took as `to`."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def machine() -> dict:
    """What figures are of, beside the code."""
    hardware = {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {**hardware, "system": platform.system(), **library_versions()}
