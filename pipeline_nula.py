"""Image classification from any source of images; named by `custom_pipelines` in config.json."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import ImageClassificationPipeline

from .configuration_nula import require_fraction, require_integer, require_positive
from .reading_nula import (
    BYTES,
    IN_MEMORY,
    MAX_BYTES,
    TIMEOUT,
    explained,
    image_files,
    is_folder,
    load_image,
    rows,
)
from .smoothing_nula import CONFIDENCE, certify

BATCH_SIZE = 64  # images a forward pass, where that many are at hand
THREADS = 8  # that read and decode files and URLs


class NulaImageClassificationPipeline(ImageClassificationPipeline):
    """The stock image-classification pipeline with NULA's way of reading images: same results, more inputs, less time.

    An image is a path, an http(s) or data URL, the bytes of an image file, a PIL image, or a numpy array or torch
    tensor of shape (3, H, W) or (H, W, 3). On a CPU the pipeline lays out the model's weights channels_last, which is
    faster there and changes no value of theirs. A call takes

    - an image, and gives its answer;
    - an array of images with a leading batch axis, or a folder, whose images are those of `image_files`, and gives a
      list of answers;
    - a list or tuple of any of these, and gives a list of what each of them gives;
    - a torch data set (such as transformers' `KeyDataset`), a column of a data set, or an iterator, of any of these,
      and gives an iterator, which holds two batches at most: one that is answered and one that is being read. Of an
      iterator it reads no further than its answers are asked for, unless `batch_size` is given.

    Raises:
        FileNotFoundError, ValueError, TypeError: an image that is not there, cannot be read, or is not an image; the
            message names it, its place among several, and what is allowed.
    """

    _load_video_processor = False  # there is none; looking for one would cost a request a load

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # the same weights, in the order that its kernels prefer

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the stock check knows the classes of the library alone and would report an error."""

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            inputs: see the class.
            batch_size: images a forward pass; unless given up to 64, and of an iterator those of one item.
            num_workers: threads that read and decode files and URLs; 8 unless given. One that has begun to read is
                waited for when the program ends.
            top_k: how many labels to return, best first; 5 unless given.
            function_to_apply: "softmax" (unless given), "sigmoid" or "none".
            timeout: seconds that a URL's server may be silent, and that its content may take in all; 30 unless given.
            max_bytes: of what a URL gives; 100 MiB unless given. (The limit of pixels is PIL.Image.MAX_IMAGE_PIXELS.)
            on_error: "raise" (unless given), or "return": {"error": message} stands in the place of an image that
                cannot be classified, and the others are answered.
            noise_draws, noise_std: certify the answer of the smoothed classifier, see `certify`, by that many draws of
                Gaussian noise, whose standard deviation is in pixel values of [0, 1] at the model's size. Instead of
                `top_k` and `function_to_apply`. Draws are torch's; torch.manual_seed repeats them.
            confidence: that a certificate holds; 0.999 unless given.

        Returns:
            For one image a list of {"label": str, "score": float}, best first. With `noise_draws` a list of one, with
            "radius": float beside them; `score` is then the lower bound of the label's probability under the noise,
            and the label is None where nothing can be certified.
        """
        inputs = kwargs.pop("images", inputs)  # as the stock pipeline calls them too
        batch_size = kwargs.pop("batch_size", self._batch_size)
        num_workers = kwargs.pop("num_workers", self._num_workers)
        if batch_size is not None:
            require_integer("batch_size", batch_size, minimum=1)
        if num_workers is not None:
            require_integer("num_workers", num_workers, minimum=0)
        of_pipeline = (self._preprocess_params, self._forward_params, self._postprocess_params)
        parameters = [default | given for default, given in zip(of_pipeline, self._sanitize_parameters(**kwargs))]
        if ("noise_draws" in parameters[1]) != ("noise_std" in parameters[1]):
            raise ValueError("noise_draws and noise_std must be given together.")
        if "confidence" in parameters[1] and "noise_draws" not in parameters[1]:
            raise ValueError("confidence is that of a certificate: give noise_draws and noise_std with it.")
        threads = THREADS if num_workers is None else max(num_workers, 1)
        at_hand = not isinstance(inputs, (Iterator, IterableDataset))  # so that it may be read ahead

        def answers(items: Iterable[Any], alone: bool = False) -> Iterator[Any]:
            sizes: deque[int | None] = deque()
            at_once = not at_hand and batch_size is None
            batches = _batches(_flattened(items, sizes, alone), batch_size or BATCH_SIZE, at_once)
            return _regrouped(self._answers(batches, threads, not at_once, *parameters), sizes)

        if isinstance(inputs, (list, tuple)):
            return list(answers(inputs))
        if isinstance(inputs, (Iterator, IterableDataset)):
            return answers(inputs)
        if isinstance(inputs, (Dataset, Sequence)) and not isinstance(inputs, (str, *BYTES)):
            return answers(rows(inputs))
        return next(answers([inputs], alone=True))

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        timeout: float | None = None,
        max_bytes: int | None = None,
        on_error: str | None = None,
        noise_draws: int | None = None,
        noise_std: float | None = None,
        confidence: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in _given({"top_k": top_k, "max_bytes": max_bytes, "noise_draws": noise_draws}).items():
            require_integer(name, value, minimum=1)
        for name, value in _given({"timeout": timeout, "noise_std": noise_std}).items():
            require_positive(name, value)
        if on_error not in (None, "raise", "return"):
            raise ValueError(f'on_error must be "raise" or "return", got {on_error!r}.')
        if confidence is not None:
            require_fraction("confidence", confidence)
        preprocess, _, postprocess = super()._sanitize_parameters(top_k, function_to_apply, timeout)
        forward = {"noise_draws": noise_draws, "noise_std": noise_std, "confidence": confidence}
        preprocess |= {"max_bytes": max_bytes, "on_error": on_error}
        return _given(preprocess), _given(forward), postprocess

    def _answers(
        self,
        batches: Iterator[list["_Item"]],
        threads: int,
        ahead: bool,
        preprocess: dict[str, Any],
        forward: dict[str, Any],
        postprocess: dict[str, Any],
    ) -> Iterator[Any]:
        """One answer for each image; where `ahead`, the files of the next batch are read while one is classified."""
        executor = ThreadPoolExecutor(threads)
        started = ((items, self._start(items, executor, **preprocess)) for items in batches)
        try:
            for items, loading in _one_ahead(started) if ahead else started:
                pixel_values, errors = self.preprocess(items, loading, preprocess.get("on_error", "raise"))
                answers = iter(())
                if pixel_values is not None:
                    outputs = self.forward({"pixel_values": pixel_values}, **forward)
                    answers = iter(self.postprocess(outputs, **postprocess))
                count = len(items)
                del items, loading, pixel_values  # before the batch after the next is read
                for place in range(count):
                    yield {"error": str(errors[place])} if place in errors else next(answers)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _start(
        self,
        items: list["_Item"],
        executor: ThreadPoolExecutor,
        timeout: float = TIMEOUT,
        max_bytes: int = MAX_BYTES,
        on_error: str = "raise",
    ) -> dict[int, Future]:
        """Place to the image, uint8 (3, height, width), of what is read by a thread: all that is not in memory."""

        def load(source: Any) -> torch.Tensor:
            return self.image_processor.pixels(load_image(source, timeout, max_bytes))[0]

        return {
            place: executor.submit(load, item.image)
            for place, item in enumerate(items)
            if not isinstance(item.image, IN_MEMORY)
        }

    def preprocess(
        self, items: list["_Item"], loading: dict[int, Future], on_error: str
    ) -> tuple[torch.Tensor | None, dict[int, Exception]]:
        """float32 (B, 3, height, width) of the images that can be read, None if none can; errors of others by place."""
        errors: dict[int, Exception] = {}

        def refuse(place: int, error: Exception) -> None:
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise error
            if on_error == "raise":
                raise explained(error, items[place].image, items[place].place) from error
            errors[place] = explained(error, items[place].image)

        images: dict[int, Any] = {}
        for place, item in enumerate(items):
            try:
                if isinstance(item.image, (np.ndarray, torch.Tensor)) and item.image.ndim != 3:
                    raise ValueError("an array of one image must have 3 axes.")
                images[place] = loading[place].result() if place in loading else item.image
            except Exception as error:  # on a broken file PIL raises OSError, SyntaxError, struct.error, ...
                refuse(place, error)
        if not images:
            return None, errors
        try:
            return self._prepared(list(images.values())), errors
        except Exception as error:
            of_batch = error
        # One by one, to tell which it is.
        prepared = []
        for place, image in images.items():
            try:
                prepared.append(self._prepared(image))
            except Exception as error:
                refuse(place, error)
        if len(prepared) == len(images):
            raise of_batch
        return torch.cat(prepared) if prepared else None, errors

    def _prepared(self, images: Any) -> torch.Tensor:
        """float32 (B, 3, height, width) on the model's device, of an image or several; like arrays go as one."""
        if isinstance(images, list) and len({_kind(image) for image in images}) == 1:
            if isinstance(images[0], np.ndarray):
                images = np.stack(images)
            elif isinstance(images[0], torch.Tensor):
                images = torch.stack([image.detach() for image in images])
        return self.image_processor(images=images, return_tensors="pt", device=self.device).pixel_values

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        noise_draws: int | None = None,
        noise_std: float | None = None,
        confidence: float = CONFIDENCE,
    ) -> Any:
        pixel_values = model_inputs["pixel_values"]
        if noise_draws is None:
            return self.model(pixel_values=pixel_values.to(self.dtype))
        processor = self.image_processor
        mean, std = (
            torch.tensor(values, device=pixel_values.device).view(-1, 1, 1)
            for values in ((processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0]))
        )

        def classify(noisy: torch.Tensor) -> torch.Tensor:  # of pixels around [0, 1], clamped as every perturbation is
            return self.model(pixel_values=((noisy.clamp(0, 1) - mean) / std).to(self.dtype)).logits

        images = pixel_values * std + mean
        certificates = [certify(classify, image, noise_std, noise_draws, confidence) for image in images]
        labels, bounds, radii = zip(*certificates)
        return {"labels": list(labels), "bounds": list(bounds), "radii": list(radii)}

    def postprocess(
        self, model_outputs: Any, function_to_apply: Any = None, top_k: int = 5
    ) -> list[list[dict[str, Any]]]:
        """The answers of a batch."""
        names = self.model.config.id2label
        if "radii" in model_outputs:
            return [
                [{"label": names.get(label), "score": bound, "radius": radius}]
                for label, bound, radius in zip(*(model_outputs[key] for key in ("labels", "bounds", "radii")))
            ]
        logits = model_outputs["logits"].float()
        if not logits.isfinite().all():
            raise ValueError("the model's logits are not finite; its weights are damaged, or its dtype overflows.")
        function = getattr(function_to_apply, "value", "softmax")
        scores = logits if function == "none" else logits.sigmoid() if function == "sigmoid" else logits.softmax(dim=1)
        best = scores.sort(dim=1, descending=True, stable=True)
        chosen = zip(best.values[:, :top_k].tolist(), best.indices[:, :top_k].tolist())
        return [[{"label": names[index], "score": score} for score, index in zip(*pair)] for pair in chosen]


@dataclass(frozen=True)
class _Item:
    """An image, its place among several, for messages, and whether it is the last of those that came with it."""

    place: str
    image: Any
    last: bool = True


def _flattened(items: Iterable[Any], sizes: deque, alone: bool) -> Iterator[_Item]:
    """The images one by one; `sizes` notes for each item how many it held, None for an image."""
    for position, item in enumerate(items):
        place, group = [] if alone else [f"item {position}"], None
        if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4:
            group = item
        elif is_folder(item):
            group = image_files(item) or None
        sizes.append(None if group is None else len(group))
        if group is None:
            yield _Item(", ".join(place), item)
        else:
            for index, image in enumerate(group):
                yield _Item(", ".join([*place, f"image {index}"]), image, last=index == len(group) - 1)


def _regrouped(results: Iterator[Any], sizes: deque) -> Iterator[Any]:
    """One result, or list of results, for each item behind `_flattened`."""
    for result in results:
        while sizes[0] == 0:
            sizes.popleft()
            yield []
        size = sizes.popleft()
        yield result if size is None else [result, *(next(results) for _ in range(size - 1))]
    for _ in sizes:  # batches of no images at the end
        yield []


def _batches(images: Iterator[_Item], batch_size: int, one_by_one: bool) -> Iterator[list[_Item]]:
    """Up to `batch_size` images at a time; where `one_by_one`, those of one item, which wait for no other."""
    batch: list[_Item] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size or (one_by_one and image.last):
            yield batch
            batch = []
    if batch:
        yield batch


def _one_ahead(values: Iterator[Any]) -> Iterator[Any]:
    """The same values, each given after the next has been made."""
    held: deque[Any] = deque()
    for value in values:
        held.append(value)
        if len(held) == 2:
            yield held.popleft()
    yield from held


def _kind(image: Any) -> tuple:
    """What arrays must have in common to be stacked."""
    names = ("shape", "dtype", "device", "layout")
    return (isinstance(image, torch.Tensor), *(getattr(image, name, None) for name in names))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
