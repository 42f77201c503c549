"""Image classification from any source of images; named by `custom_pipelines` in config.json."""

import io
import os
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ImageClassificationPipeline
from transformers.image_processing_utils import BatchFeature

URL_SCHEMES = ("http://", "https://", "data:")
TIMEOUT = 30.0  # seconds to wait for a server
BATCH_SIZE = 256  # images a forward pass, where they came as one array


class NulaImageClassificationPipeline(ImageClassificationPipeline):
    """The stock image-classification pipeline with NULA's way of reading images: same results, more inputs.

    An image is a path, an http(s) or data URL, a PIL image, or a numpy array or torch tensor of shape (3, H, W) or
    (H, W, 3). A call takes one image, an array of images with a leading batch axis, or a list, tuple or generator of
    any of these, and answers in kind: `pipe([a, b])` is `[pipe(a), pipe(b)]`, and a generator is answered one by one,
    as the answers are asked for. A torch data set of single images (such as transformers' `KeyDataset`) is taken too.

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
            top_k: how many labels to return, best first; 5 unless given.
            function_to_apply: "softmax" (unless given), "sigmoid" or "none".
            batch_size: images a forward pass; unless given, 1, or for an array of images all of them up to 256.
            timeout: seconds to wait for a URL; 30 unless given.

        Returns:
            For one image a list of {"label": str, "score": float}, best first.
        """
        if _is_batch(inputs):
            default = self._batch_size or min(max(len(inputs), 1), BATCH_SIZE)
            return self([inputs], **{"batch_size": default} | kwargs)[0]
        if isinstance(inputs, GeneratorType):
            sizes = deque()
            # A worker process would fill a `sizes` of its own, so the generator is read here.
            return _regrouped(super().__call__(_flattened(inputs, sizes), **kwargs | {"num_workers": 0}), sizes)
        if isinstance(inputs, (list, tuple)):
            sizes = deque()
            images = list(_flattened(inputs, sizes))
            return list(_regrouped(iter(super().__call__(images, **kwargs) if images else []), sizes))
        return super().__call__(inputs, **kwargs)

    def preprocess(self, image: Any, timeout: float = TIMEOUT) -> BatchFeature:
        where = ""
        if isinstance(image, _Item):
            where, image = f"item {image.position}: ", image.image
        name = where + _describe(image)
        try:
            if not isinstance(image, (np.ndarray, torch.Tensor)):
                image = load_image(image, timeout)
            elif image.ndim != 3:
                raise ValueError("an array of one image must have 3 axes.")
            return self.image_processor(images=image, return_tensors="pt").to(self.dtype)
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: there is no such file; give the path or URL of an image.") from None
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from error
        # On a broken file PIL's decoders raise OSError, SyntaxError, struct.error, NotImplementedError, ...
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error


def load_image(source: Any, timeout: float) -> Image.Image:
    """The decoded image of a path, an http(s) or data URL, or a PIL image; nothing else here opens anything."""
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "an image must be a path, a URL, a PIL image, a numpy array or a torch tensor; several come as a list, "
            "a tuple, a generator or a torch data set."
        )
    if isinstance(source, str) and source.lower().startswith(URL_SCHEMES):
        request = urllib.request.Request(source, headers={"User-Agent": "nula"})  # some hosts refuse Python's own
        with urllib.request.urlopen(request, timeout=timeout) as response:
            source = io.BytesIO(response.read())
    try:
        with Image.open(source) as image:
            image.load()
            return image
    except Image.UnidentifiedImageError:
        raise ValueError(
            "this is not an image that PIL can read (PNG, JPEG, WebP, GIF, BMP, TIFF and the like)."
        ) from None


def _describe(image: Any) -> str:
    """A name for messages: the path or URL itself, else the kind and shape."""
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        return repr(name if len(name) <= 200 else name[:200] + "...")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    return f"{type(image).__name__} of size {image.size}" if isinstance(image, Image.Image) else type(image).__name__


def _is_batch(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 4


@dataclass(frozen=True)
class _Item:
    """One of several images, with its place among them for messages."""

    position: str
    image: Any


def _flattened(items: Iterable[Any], sizes: deque) -> Iterator[_Item]:
    """The images one by one; `sizes` notes for each item how many it held, None for an image that stood alone."""
    for position, item in enumerate(items):
        if _is_batch(item):
            sizes.append(len(item))
            for index, image in enumerate(item):
                yield _Item(f"{position}, image {index}", image)
        else:
            sizes.append(None)
            yield _Item(str(position), item)


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
