"""From whatever holds images to batches of them, in order and within bounds of memory."""

import contextlib
import contextvars
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .reading_nula import (
    BYTES,
    IN_MEMORY,
    Reading,
    fetch,
    gives_bytes,
    image_files,
    is_folder,
    is_url,
    listed,
    open_image,
    rows,
)

if TYPE_CHECKING:  # as reading_nula imports it: transformers 5.3 loads what the text of a file itself imports
    from .configuration_nula import require_integer  # noqa: F401

PATIENCE = 0.2  # seconds that the first image of a batch waits for others, where its source gives them one by one
PIXELS = 50_000_000  # that are decoded at once; a larger image is decoded alone


@dataclass
class Item:
    """An image on its way.

    Args:
        place: among several, for messages.
        image: as it was given.
        last: whether it is the last of those that came with it.
        pixels: where a thread reads them, uint8 (3, height, width).
    """

    place: str
    image: Any
    last: bool = True
    pixels: Future[torch.Tensor] | None = None


class Batch(list[Any]):
    """Images that came together, and whose answers are given together."""


def images_of(inputs: Any) -> tuple[Iterable[Any], bool] | None:
    """Return the images that `inputs` holds and whether they are at hand, so that any may be read ahead.

    None if it is one image, or nothing that is known.

    Raises:
        TypeError: a table of several columns.
    """
    if isinstance(inputs, DataLoader):
        return map(_images_of_batch, inputs), False
    if isinstance(inputs, (str, os.PathLike, Mapping, Set, type, *BYTES, *IN_MEMORY)) or gives_bytes(inputs):
        return None
    columns = getattr(inputs, "column_names", getattr(inputs, "columns", None))
    if columns is not None:
        kind = type(inputs).__name__
        raise TypeError(f"{kind}: a table with the columns {listed(columns)} is no image; give one of its columns.")
    if isinstance(inputs, (Iterator, IterableDataset)):
        return inputs, False
    if isinstance(inputs, (Dataset, Sequence)):
        return rows(inputs), True
    one_axis = len(getattr(inputs, "shape", (0,))) == 1  # other arrays than numpy's and torch's have more
    if isinstance(inputs, Iterable) and one_axis:
        # A column of pandas, polars or Arrow, whose values are scalars of its own, is at hand; what has no length not.
        return (value.as_py() if hasattr(value, "as_py") else value for value in inputs), hasattr(inputs, "__len__")
    return None


def _images_of_batch(batch: Any) -> Any:
    """The images of what a DataLoader gives: a batch, or one beside its labels."""
    if isinstance(batch, Mapping):
        images = [values for values in batch.values() if _is_batch(values)]
        batch = images[0] if len(images) == 1 else batch
    elif isinstance(batch, (list, tuple)) and batch and _is_batch(batch[0]):
        batch = batch[0]
    return Batch(batch) if isinstance(batch, (list, tuple)) else batch


def _is_batch(values: Any) -> bool:
    return isinstance(values, (list, tuple)) or (isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim == 4)


def flattened(images: Iterable[Any], sizes: deque[int | None], formats: tuple[str, ...], alone: bool) -> Iterator[Item]:
    """Yield the images one by one; `sizes` notes for each how many it held, None for an image."""
    for position, image in enumerate(images):
        place = [] if alone else [f"item {position}"]
        group: Any = None
        if isinstance(image, torch.Tensor) and image.is_nested:
            group = image.unbind()
        elif isinstance(image, Batch) or (isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4):
            group = image
        elif is_folder(image):
            group = image_files(image, formats) or None
        sizes.append(None if group is None else len(group))
        if group is None:
            yield Item(", ".join(place), image)
        else:
            for index, one in enumerate(group):
                yield Item(", ".join([*place, f"image {index}"]), one, last=index == len(group) - 1)


def regrouped(results: Iterator[Any], sizes: deque[int | None]) -> Iterator[Any]:
    """Yield one result, or list of results, for each image behind `flattened`."""
    for result in results:
        while sizes[0] == 0:
            sizes.popleft()
            yield []
        size = sizes.popleft()
        yield result if size is None else [result, *(next(results) for _ in range(size - 1))]
    for _ in sizes:  # batches of no images at the end
        yield []


def batches(items: Iterable[Item], batch_size: int, one_by_one: bool = False) -> Iterator[list[Item]]:
    """Yield up to `batch_size` items at a time; where `one_by_one`, those that came together, which wait for no other.

    An error of `items` is raised behind what they gave before.
    """
    batch: list[Item] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == batch_size or (one_by_one and item.last):
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def one_ahead(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the same values, each after the next has been made, or has failed to be."""
    held: deque[Any] = deque()
    try:
        for value in values:
            held.append(value)
            if len(held) == 2:
                yield held.popleft()
    except Exception:
        yield from held
        raise
    yield from held


@dataclass(frozen=True)
class _End:
    """What stands behind the last item."""

    error: Exception | None


class ReadAhead:
    """Reads items in a thread of its own, so that an answer waits for no item that is yet to come.

    Args:
        items: what is read.
        limit: how many are held, besides one that is about to be.
    """

    def __init__(self, items: Iterator[Item], limit: int):
        self._queue: queue.Queue[Item | _End] = queue.Queue(limit)
        self._closed = False
        context = contextvars.copy_context()
        # Nothing ends a thread that waits for its source; a daemon does not keep the program from ending.
        threading.Thread(target=context.run, args=(self._read, items), daemon=True).start()

    def _read(self, items: Iterator[Item]) -> None:
        error = None
        try:
            for item in items:
                self._queue.put(item)
                del item
                if self._closed:
                    return
        except Exception as failure:
            error = failure
        self._queue.put(_End(error))

    def batches(self, batch_size: int) -> Iterator[list[Item]]:
        """Yield up to `batch_size` items, whose pixels are there, at a time: as many as come within PATIENCE.

        An error of the items is raised behind what they gave before.
        """
        first: Item | _End | None = None
        while True:
            item, first = first or self._queue.get(), None
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            if item.pixels is not None:
                wait([item.pixels])
            batch, until = [item], time.monotonic() + PATIENCE
            del item
            while first is None and len(batch) < batch_size:
                try:
                    first = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if isinstance(first, Item) and _is_read(first, until):
                    batch.append(first)
                    first = None
            yield batch
            del batch

    def close(self) -> None:
        """Stop reading behind the item that is being read."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()


def _is_read(item: Item, until: float) -> bool:
    return item.pixels is None or bool(wait([item.pixels], max(0.0, until - time.monotonic())).done)


class Room:
    """Bounds what is decoded at once: PIXELS in all, or one image that has more."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait for room for so many, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + pixels <= PIXELS)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


class Readers:
    """Threads that read images: some fetch URLs, as many as there are cores decode, and one decodes large images.

    A thread that has decoded keeps the memory for its next image, so more of them would cost memory and save no time.

    Args:
        threads: that fetch; of those that decode, too, there are no more.
        reading: limits, formats and frame.
        to_pixels: an image to uint8 (3, height, width).
    """

    def __init__(self, threads: int, reading: Reading, to_pixels: Callable[[Any], torch.Tensor]):
        self._reading, self._to_pixels, self._room = reading, to_pixels, Room()
        self._fetching = ThreadPoolExecutor(threads)
        self._decoding = ThreadPoolExecutor(min(threads, _cores()))
        self._large = ThreadPoolExecutor(1)

    def started(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items, each after its reading has begun where it is not in memory."""
        for item in items:
            if not isinstance(item.image, IN_MEMORY):
                source = self._fetching.submit(fetch, item.image, self._reading) if is_url(item.image) else item.image
                item.pixels = self._decoding.submit(self._pixels, source)
            yield item

    def _pixels(self, source: Any) -> torch.Tensor:
        source = source.result() if isinstance(source, Future) else source
        with open_image(source, self._reading) as image:
            pixels = image.width * image.height if isinstance(image, Image.Image) else 0
            with self._room.of(pixels):
                large = 2 * pixels > PIXELS  # of which no two are decoded at once
                return self._large.submit(self._to_pixels, image).result() if large else self._to_pixels(image)

    def close(self) -> None:
        """Begin to read nothing more."""
        for executor in (self._fetching, self._decoding, self._large):
            executor.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
