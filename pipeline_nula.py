"""Image classification from any source of images; named by `custom_pipelines` in config.json."""

import io
import os
import time
import urllib.request
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import ImageClassificationPipeline

URL_SCHEMES = ("http://", "https://", "data:")
TIMEOUT = 30.0  # seconds for a URL, from the request to the last byte
MAX_BYTES = 100 * 2**20  # of what a URL gives
BATCH_SIZE = 64  # images a forward pass, where that many are at hand
THREADS = 8  # that read and decode files and URLs
CONFIDENCE = 0.999  # that a certificate holds; Cohen et al.'s
SELECTION_DRAWS = 100  # of the noise, by which the class is chosen that is then certified; Cohen et al.'s

IN_MEMORY = (Image.Image, np.ndarray, torch.Tensor)


class NulaImageClassificationPipeline(ImageClassificationPipeline):
    """The stock image-classification pipeline with NULA's way of reading images: same results, more inputs, less time.

    An image is a path, an http(s) or data URL, the bytes of an image file, a PIL image, or a numpy array or torch
    tensor of shape (3, H, W) or (H, W, 3). A call takes

    - an image, and gives its answer;
    - an array of images with a leading batch axis, or a folder, whose images are those of `image_files`, and gives a
      list of answers;
    - a list or tuple of any of these, and gives a list of what each of them gives;
    - an iterator of any of these, or a torch data set (such as transformers' `KeyDataset`), and gives an iterator,
      which reads and classifies no further than its answers are asked for, but for the rest of a batch.

    Raises:
        FileNotFoundError, ValueError, TypeError: an image that is not there, cannot be read, or is not an image; the
            message names it, its place among several, and what is allowed.
    """

    _load_video_processor = False  # there is none; looking for one would cost a request a load

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the stock check knows the classes of the library alone and would report an error."""

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: see the class.
            batch_size: images a forward pass; unless given up to 64, and of an iterator 1.
            num_workers: threads that read and decode files and URLs; 8 unless given.
            top_k: how many labels to return, best first; 5 unless given.
            function_to_apply: "softmax" (unless given), "sigmoid" or "none".
            timeout: seconds for a URL; 30 unless given.
            max_bytes: of what a URL gives; 100 MiB unless given. (The limit of pixels is PIL.Image.MAX_IMAGE_PIXELS.)
            on_error: "raise" (unless given), or "return": {"error": message} stands in the place of an image that
                cannot be classified, and the others are answered.
            noise_draws, noise_std: certify the answer of the smoothed classifier, see `certify`, by that many draws of
                Gaussian noise, whose standard deviation is in pixel values of [0, 1] at the model's size.
            confidence: that a certificate holds; 0.999 unless given.

        Returns:
            For one image a list of {"label": str, "score": float}, best first. With `noise_draws` a list of one, with
            "radius": float beside them; `score` is then the lower bound of the label's probability under the noise,
            and the label is None where nothing can be certified.
        """
        batch_size = kwargs.pop("batch_size", self._batch_size)
        num_workers = kwargs.pop("num_workers", self._num_workers)
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value is not None and not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        of_pipeline = (self._preprocess_params, self._forward_params, self._postprocess_params)
        parameters = [default | given for default, given in zip(of_pipeline, self._sanitize_parameters(**kwargs))]
        threads = THREADS if num_workers is None else max(num_workers, 1)

        def answers(items: Iterable[Any], default: int, alone: bool = False) -> Iterator[Any]:
            sizes: deque[int | None] = deque()
            images = _flattened(items, sizes, alone)
            return _regrouped(self._answers(images, batch_size or default, threads, *parameters), sizes)

        if isinstance(inputs, (list, tuple)):
            return list(answers(inputs, BATCH_SIZE))
        if isinstance(inputs, (Iterator, IterableDataset)):
            return answers(inputs, 1)
        if isinstance(inputs, Dataset):
            return answers((inputs[index] for index in range(len(inputs))), BATCH_SIZE)
        return next(answers([inputs], BATCH_SIZE, alone=True))

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
        for name, value, allowed, holds in (
            ("top_k", top_k, "an integer of at least 1", lambda value: isinstance(value, int) and value >= 1),
            ("timeout", timeout, "a positive number of seconds", lambda value: value > 0),
            ("max_bytes", max_bytes, "a positive number of bytes", lambda value: value > 0),
            ("on_error", on_error, '"raise" or "return"', lambda value: value in ("raise", "return")),
            ("noise_draws", noise_draws, "an integer of at least 1", lambda v: isinstance(v, int) and v >= 1),
            ("noise_std", noise_std, "a positive number", lambda value: value > 0),
            ("confidence", confidence, "between 0 and 1", lambda value: 0 < value < 1),
        ):
            if value is not None and not holds(value):
                raise ValueError(f"{name} must be {allowed}, got {value!r}.")
        if (noise_draws is None) != (noise_std is None):
            raise ValueError("noise_draws and noise_std must be given together.")
        preprocess, _, postprocess = super()._sanitize_parameters(top_k, function_to_apply, timeout)
        forward = {"noise_draws": noise_draws, "noise_std": noise_std, "confidence": confidence}
        preprocess |= {"max_bytes": max_bytes, "on_error": on_error}
        return _given(preprocess), _given(forward), postprocess

    def _answers(
        self,
        images: Iterator["_Item"],
        batch_size: int,
        threads: int,
        preprocess: dict[str, Any],
        forward: dict[str, Any],
        postprocess: dict[str, Any],
    ) -> Iterator[Any]:
        with ThreadPoolExecutor(threads) as executor:
            while items := list(islice(images, batch_size)):
                pixel_values, errors = self.preprocess(items, executor, **preprocess)
                answers = iter(())
                if pixel_values is not None:
                    outputs = self.forward({"pixel_values": pixel_values}, **forward)
                    answers = iter(self.postprocess(outputs, **postprocess))
                for place in range(len(items)):
                    yield {"error": str(errors[place])} if place in errors else next(answers)

    def preprocess(
        self,
        items: list["_Item"],
        executor: Executor,
        timeout: float = TIMEOUT,
        max_bytes: int = MAX_BYTES,
        on_error: str = "raise",
    ) -> tuple[torch.Tensor | None, dict[int, Exception]]:
        """(B, 3, height, width) of the images that can be read, None if none can, and what is wrong with the others."""

        def prepared(images: Any) -> torch.Tensor:
            device = self.device
            return self.image_processor(images=images, return_tensors="pt", device=device).pixel_values.to(self.dtype)

        def load(item: _Item) -> torch.Tensor | Exception:
            try:
                if isinstance(item.image, (np.ndarray, torch.Tensor)) and item.image.ndim != 3:
                    raise ValueError("an array of one image must have 3 axes.")
                return prepared(load_image(item.image, timeout, max_bytes))
            except Exception as error:  # on a broken file PIL raises OSError, SyntaxError, struct.error, ...
                return _explained(error, item)

        if all(isinstance(item.image, IN_MEMORY) for item in items):
            try:
                return prepared([item.image for item in items]), {}
            except Exception as error:  # one by one, then, to tell which it is
                del error
        elsewhere = {
            place: executor.submit(load, item)
            for place, item in enumerate(items)
            if not isinstance(item.image, IN_MEMORY)
        }
        loaded = [elsewhere[place].result() if place in elsewhere else load(item) for place, item in enumerate(items)]
        errors = {place: error for place, error in enumerate(loaded) if isinstance(error, Exception)}
        if errors and on_error == "raise":
            raise errors[min(errors)]
        pixels = [image for image in loaded if isinstance(image, torch.Tensor)]
        return torch.cat(pixels) if pixels else None, errors

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        noise_draws: int | None = None,
        noise_std: float | None = None,
        confidence: float = CONFIDENCE,
    ) -> Any:
        if noise_draws is None:
            return self.model(**model_inputs)
        pixel_values = model_inputs["pixel_values"]
        mean, std = (
            torch.tensor(values, dtype=pixel_values.dtype, device=pixel_values.device).view(-1, 1, 1)
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )

        def classify(noisy: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=((noisy - mean) / std).clamp(-mean / std, (1 - mean) / std)).logits

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
        function = getattr(function_to_apply, "value", "softmax")
        scores = logits if function == "none" else logits.sigmoid() if function == "sigmoid" else logits.softmax(dim=1)
        best = scores.sort(dim=1, descending=True, stable=True)
        chosen = zip(best.values[:, :top_k].tolist(), best.indices[:, :top_k].tolist())
        return [[{"label": names[index], "score": score} for score, index in zip(*pair)] for pair in chosen]


def certify(
    classify: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    noise_std: float,
    noise_draws: int,
    confidence: float = CONFIDENCE,
    batch_size: int = 256,
) -> tuple[int | None, float, float]:
    """The smoothed classifier's answer to `image` (3, H, W), the lower bound of its probability, and its L2 radius.

    The smoothed classifier g answers with the class that `classify`, from images (B, 3, H, W) to logits (B, classes),
    gives most often for image + N(0, noise_std²). With at least the given confidence over the draws, g answers the
    same to every image whose L2 distance from this one, over all its pixel values, is below the radius; this holds for
    any `classify`. The class is chosen by 100 draws; `noise_draws` others bound its probability p from below (Clopper
    and Pearson, one-sided), and the radius is noise_std · Φ⁻¹(p). Where p is not above 1/2 it abstains: (None, p, 0).
    Algorithm CERTIFY of J. Cohen, E. Rosenfeld and Z. Kolter, "Certified Adversarial Robustness via Randomized
    Smoothing" (ICML 2019).

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.stats import binomtest, norm
    except ImportError:
        raise ImportError("certificates need scipy; pip install scipy.") from None

    def count(draws: int) -> torch.Tensor:
        counts = 0
        for start in range(0, draws, batch_size):
            copies = image.expand(min(batch_size, draws - start), *image.shape)
            logits = classify(copies + noise_std * torch.randn_like(copies))
            counts = counts + torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
        return counts

    label = int(count(SELECTION_DRAWS).argmax())
    votes = int(count(noise_draws)[label])
    test = binomtest(votes, noise_draws, alternative="greater")
    bound = float(test.proportion_ci(confidence, method="exact").low)
    return (label, bound, noise_std * float(norm.ppf(bound))) if bound > 0.5 else (None, bound, 0.0)


def image_files(folder: str | os.PathLike) -> list[Path]:
    """The image files in and below `folder`, sorted, told by their suffixes; one warning tells of all other files."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    others = [file for file in files if file.suffix.lower() not in known]
    if others:
        message = (
            f"{len(others)} of {len(files)} files have no image's suffix and are skipped, such as {others[0].name!r}."
        )
        warnings.warn(f"{os.fspath(folder)!r}: {message}", stacklevel=2)
    return [file for file in files if file.suffix.lower() in known]


def load_image(source: Any, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES) -> Any:
    """The decoded image of a path, URL or bytes; a PIL image or array as it is. Nothing else here opens anything."""
    if isinstance(source, IN_MEMORY):
        return source
    if isinstance(source, str) and source.lower().startswith(URL_SCHEMES):
        if source.lower().startswith("data:") and "," not in source:
            raise ValueError("a data URL has a comma before its data.")
        end = time.monotonic() + timeout
        request = urllib.request.Request(source, headers={"User-Agent": "nula"})  # some hosts refuse Python's own
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content = bytearray()
            while chunk := response.read1(2**16):
                content += chunk
                if len(content) > max_bytes:
                    raise ValueError(f"there are more than {max_bytes:,} bytes; pass max_bytes to take more.")
                if time.monotonic() > end:
                    raise ValueError(f"timed out: it was not there after {timeout:g} s; pass timeout to wait longer.")
        source = bytes(content)
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    elif not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "an image must be a path, a URL, bytes, a PIL image, a numpy array or a torch tensor; several come as a "
            "list, a tuple, an iterator, a torch data set (such as KeyDataset, of one column) or a folder."
        )
    elif _is_folder(source):
        raise ValueError("this folder holds no image.")
    too_large = "it has more pixels than PIL.Image.MAX_IMAGE_PIXELS ({}); raise that to take it.".format
    try:
        with Image.open(source) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(too_large(limit))
            image.load()
            return image
    except Image.DecompressionBombError:
        raise ValueError(too_large(Image.MAX_IMAGE_PIXELS)) from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            "this is not an image that PIL can read (PNG, JPEG, WebP, GIF, BMP, TIFF and the like)."
        ) from None


@dataclass(frozen=True)
class _Item:
    """An image, and its place among several, for messages."""

    place: str
    image: Any


def _explained(error: Exception, item: _Item) -> Exception:
    """`error` as one of three kinds, with the item's place and name before its message."""
    name = (f"{item.place}: " if item.place else "") + _describe(item.image)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{name}: there is no such file; give the path or URL of an image.")
    kind = TypeError if isinstance(error, TypeError) else ValueError
    # Of an OSError without the name, which may be very long.
    explained = kind(f"{name}: {getattr(error, 'strerror', None) or error}")
    explained.__cause__ = error
    return explained


def _describe(image: Any) -> str:
    """A name for messages: the path or URL itself, else the kind and shape."""
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        return repr(name if len(name) <= 200 else name[:200] + "...")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    if isinstance(image, (bytes, bytearray)):
        return f"{len(image):,} bytes"
    return f"{type(image).__name__} of size {image.size}" if isinstance(image, Image.Image) else type(image).__name__


def _flattened(items: Iterable[Any], sizes: deque, alone: bool) -> Iterator[_Item]:
    """The images one by one; `sizes` notes for each item how many it held, None for an image."""
    for position, item in enumerate(items):
        place, group = [] if alone else [f"item {position}"], None
        if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4:
            group = item
        elif _is_folder(item):
            group = image_files(item) or None
        sizes.append(None if group is None else len(group))
        if group is None:
            yield _Item(", ".join(place), item)
        else:
            for index, image in enumerate(group):
                yield _Item(", ".join([*place, f"image {index}"]), image)


def _is_folder(item: Any) -> bool:
    # The empty path would be the working directory.
    if not isinstance(item, (str, os.PathLike)) or item == "" or str(item).lower().startswith(URL_SCHEMES):
        return False
    try:
        return Path(item).is_dir()
    except OSError:  # no file can have this name
        return False


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


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
