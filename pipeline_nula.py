"""Image classification from any source of images; named by `custom_pipelines` in config.json."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from transformers import ImageClassificationPipeline

from .batching_nula import Item, ReadAhead, Readers, batches, flattened, images_of, one_ahead, regrouped
from .configuration_nula import require_fraction, require_integer, require_labels, require_positive
from .reading_nula import Reading, explained
from .smoothing_nula import CONFIDENCE, certify

BATCH_SIZE = 64  # images a forward pass, where that many are at hand
THREADS = 8  # that fetch URLs; as many decode as there are cores


@dataclass(frozen=True)
class _Settings:
    """What a call asks for."""

    batch_size: int | None
    threads: int
    on_error: str
    reading: Reading
    forward: dict[str, Any]
    postprocess: dict[str, Any]


class NulaImageClassificationPipeline(ImageClassificationPipeline):
    """The stock image-classification pipeline with NULA's way of reading images: same results, more inputs, less time.

    An image is a path, an http(s) or data URL, the bytes of an image file, an open file or upload (an object with
    `read`, which is rewound first if it can be), a row {"bytes", "path"} of a data set that is not decoded, a PIL
    image, or a numpy array or torch tensor of shape (3, H, W) or (H, W, 3), with 1 or 4 channels in place of 3, or
    (H, W). On a CPU the pipeline lays out the model's weights channels_last, which is faster there and changes no value
    of theirs. The model answers in evaluation mode, whatever mode it is in. A call takes

    - an image, and gives its answer;
    - an array of images with a leading batch axis, or a folder, whose images are those of `image_files`, and gives a
      list of answers;
    - a list or tuple of any of these, and gives a list of what each of them gives;
    - a torch data set (such as transformers' `KeyDataset`), a column of a data set or of a table of pandas, polars or
      Arrow, or an iterator, of any of these, and gives an iterator, which holds two batches at most: one that is
      answered and one that is being read;
    - a torch DataLoader, and gives an iterator of the list of answers of each batch; labels beside the images are
      passed over.

    An iterator is read one item at a time, when an answer is asked for. With a `batch_size` above 1 it is read ahead by
    a thread, and what it has given is answered when no more comes at once. An error that it raises is raised behind the
    answers of what it gave before.

    Raises:
        FileNotFoundError, ValueError, TypeError: an image that is not there, cannot be read, or is not an image; the
            message names it, its place among several, and what is allowed. Where an iterator is answered the answers
            of the images before it are given first.
    """

    _load_video_processor = False  # there is none; looking for one would cost a request a load

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        head = getattr(self.model, "classifier", None)
        names = self.model.config.id2label
        require_labels(names, head.out_features if isinstance(head, torch.nn.Linear) else len(names))
        self.model.eval()
        if self.device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # the same weights, in the order that its kernels prefer

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the stock check knows the classes of the library alone and would report an error."""

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            inputs: see the class.
            batch_size: images a forward pass; unless given up to 64, and of an iterator those of one item.
            num_workers: threads that fetch URLs, 8 unless given. As many, but no more than there are cores, read files,
                and no more than 50 million pixels at once. One that has begun to read is waited for when the program
                ends.
            top_k: how many labels to return, best first; 5 unless given.
            function_to_apply: "softmax" (unless given), "sigmoid" or "none".
            calibrated: whether the logits are divided by the temperature of the model's configuration before softmax,
                so that of answers with a score near 0.9 about nine in ten are right; False unless given.
            timeout: seconds that a URL's server may be silent, and that its content may take in all; 30 unless given.
            max_bytes: of what a URL gives; 100 MiB unless given. (The limit of pixels is PIL.Image.MAX_IMAGE_PIXELS.)
            formats: names of formats that Pillow has been given a decoder for, such as ("HEIF",), and that are taken
                besides the usual ones. They are as safe as their decoder.
            frame: which frame of an animation, or page of a stack, is taken from a file; 0 unless given.
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
        settings = self._settings(kwargs.pop("batch_size", None), kwargs.pop("num_workers", None), **kwargs)
        if isinstance(inputs, (list, tuple)):
            return list(self._answers(inputs, settings))
        several = images_of(inputs)
        if several is None:
            return next(self._answers([inputs], settings, alone=True))
        images, at_hand = several
        return self._answers(images, settings, at_hand)

    def _settings(self, batch_size: int | None, num_workers: int | None, **kwargs: Any) -> _Settings:
        """What the call asks for, and else the pipeline.

        Raises:
            ValueError: an impossible value; the message names it and what is allowed.
        """
        batch_size = self._batch_size if batch_size is None else batch_size
        num_workers = self._num_workers if num_workers is None else num_workers
        if batch_size is not None:
            require_integer("batch_size", batch_size, minimum=1)
        if num_workers is not None:
            require_integer("num_workers", num_workers, minimum=0)
        of_pipeline = (self._preprocess_params, self._forward_params, self._postprocess_params)
        preprocess, forward, postprocess = (
            default | given for default, given in zip(of_pipeline, self._sanitize_parameters(**kwargs))
        )
        if ("noise_draws" in forward) != ("noise_std" in forward):
            raise ValueError("noise_draws and noise_std must be given together.")
        if "confidence" in forward and "noise_draws" not in forward:
            raise ValueError("confidence is that of a certificate: give noise_draws and noise_std with it.")
        on_error = preprocess.pop("on_error", "raise")
        threads = THREADS if num_workers is None else max(num_workers, 1)
        return _Settings(batch_size, threads, on_error, Reading(**preprocess), forward, postprocess)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        calibrated: bool | None = None,
        on_error: str | None = None,
        noise_draws: int | None = None,
        noise_std: float | None = None,
        confidence: float | None = None,
        **reading: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in _given({"top_k": top_k, "noise_draws": noise_draws}).items():
            require_integer(name, value, minimum=1)
        if noise_std is not None:
            require_positive("noise_std", noise_std)
        if on_error not in (None, "raise", "return"):
            raise ValueError(f'on_error must be "raise" or "return", got {on_error!r}.')
        if confidence is not None:
            require_fraction("confidence", confidence)
        preprocess, _, postprocess = super()._sanitize_parameters(top_k, function_to_apply)
        unknown = reading.keys() - {field.name for field in fields(Reading)}
        if unknown:
            raise TypeError(f"{min(unknown)!r} is no option of this pipeline; `help(pipeline.__call__)` lists them.")
        preprocess |= _given(reading)
        Reading(**preprocess)  # which refuses impossible values
        postprocess |= self._calibration(calibrated, function_to_apply)
        forward = {"noise_draws": noise_draws, "noise_std": noise_std, "confidence": confidence}
        return preprocess | _given({"on_error": on_error}), _given(forward), postprocess

    def _calibration(self, calibrated: Any, function_to_apply: Any) -> dict[str, float]:
        """What `postprocess` is to divide logits by; nothing where the call does not say."""
        if calibrated not in (None, True, False):
            raise ValueError(f"calibrated must be True or False, got {calibrated!r}.")
        if not calibrated:
            return {} if calibrated is None else {"temperature": 1.0}
        if function_to_apply not in (None, "softmax"):
            raise ValueError(f"calibrated scores are those of softmax, not of {function_to_apply!r}.")
        if (temperature := getattr(self.model.config, "calibration_temperature", None)) is None:
            raise ValueError("calibrated scores need a temperature, and the model's configuration has none.")
        return {"temperature": temperature}

    def _answers(
        self, images: Iterable[Any], settings: _Settings, at_hand: bool = True, alone: bool = False
    ) -> Iterator[Any]:
        """What each of `images` gives: an answer, or a list of them."""
        sizes: deque[int | None] = deque()
        items = flattened(images, sizes, settings.reading.formats, alone)
        return regrouped(self._answers_of_items(items, settings, at_hand), sizes)

    def _answers_of_items(self, items: Iterator[Item], settings: _Settings, at_hand: bool) -> Iterator[Any]:
        """One answer for each item."""
        readers = Readers(settings.threads, settings.reading, lambda image: self.image_processor.pixels(image)[0])
        with ExitStack() as stack:
            stack.callback(readers.close)
            items = readers.started(items)
            size = settings.batch_size or BATCH_SIZE
            if at_hand:
                groups = one_ahead(batches(items, size))
            elif settings.batch_size in (None, 1):
                groups = batches(items, size, one_by_one=True)
            else:
                ahead = ReadAhead(items, size - 1)
                stack.callback(ahead.close)
                groups = ahead.batches(size)
            for batch in groups:
                answers, failure = self._answered(batch, settings)
                del batch  # before the batch after the next is read
                yield from answers
                if failure is not None:
                    item, error = failure
                    raise explained(error, item.image, item.place) from error

    def _answered(self, batch: list[Item], settings: _Settings) -> tuple[list[Any], tuple[Item, Exception] | None]:
        """The answers of a batch; where errors are raised, those before the first item that fails, and that."""
        pixel_values, errors = self.preprocess(batch, settings.on_error)
        answers: Iterator[Any] = iter(())
        if pixel_values is not None:
            outputs = self.forward({"pixel_values": pixel_values}, **settings.forward)
            answers = iter(self.postprocess(outputs, **settings.postprocess))
        given: list[Any] = []
        for place, item in enumerate(batch):
            if place not in errors:
                given.append(next(answers))
            elif settings.on_error == "return":
                given.append({"error": str(explained(errors[place], item.image))})
            else:
                return given, (item, errors[place])
        return given, None

    def preprocess(
        self, items: list[Item], on_error: str = "raise"
    ) -> tuple[torch.Tensor | None, dict[int, Exception]]:
        """float32 (B, 3, height, width) of the images that can be read, None if none can; errors of others by place.

        Where `on_error` is "raise" nothing is looked at behind the first that cannot.
        """
        images: dict[int, Any] = {}
        errors: dict[int, Exception] = {}
        for place, item in enumerate(items):
            try:
                images[place] = _checked(item.image if item.pixels is None else item.pixels.result())
            except Exception as error:  # on a broken file PIL raises OSError, SyntaxError, struct.error, ...
                _refuse(place, error, errors)
                if on_error == "raise":
                    break
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
                _refuse(place, error, errors)
                if on_error == "raise":
                    break
        if len(prepared) == len(images):
            raise of_batch
        return torch.cat(prepared) if prepared else None, errors

    def _prepared(self, images: Any) -> torch.Tensor:
        """float32 (B, 3, height, width) on the model's device, of an image or several; like arrays go as one."""
        alike = isinstance(images, list) and len({_kind(image) for image in images}) == 1
        if alike and getattr(images[0], "ndim", None) == 3:  # of gray ones without an axis for it a batch has 3, too
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
        # Of a model that is being trained, too: answers would be random, and its statistics changed for good.
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            if noise_draws is None:
                return self.model(pixel_values=model_inputs["pixel_values"].to(self.dtype), return_dict=True)
            return self._certified(model_inputs["pixel_values"], noise_draws, noise_std, confidence)
        finally:
            for module in training:
                module.training = True

    def _certified(
        self, pixel_values: torch.Tensor, noise_draws: int, noise_std: float, confidence: float
    ) -> dict[str, list[Any]]:
        """Labels, lower bounds of their probabilities, and radii."""
        processor = self.image_processor
        mean, std = (
            torch.tensor(values, device=pixel_values.device).view(-1, 1, 1)
            for values in ((processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0]))
        )

        def classify(noisy: torch.Tensor) -> torch.Tensor:  # of pixels around [0, 1], clamped as every perturbation is
            return self.model(pixel_values=((noisy.clamp(0, 1) - mean) / std).to(self.dtype), return_dict=True).logits

        images = pixel_values * std + mean
        certificates = [certify(classify, image, noise_std, noise_draws, confidence) for image in images]
        labels, bounds, radii = zip(*certificates)
        return {"labels": list(labels), "bounds": list(bounds), "radii": list(radii)}

    def postprocess(
        self, model_outputs: Any, function_to_apply: Any = None, top_k: int = 5, temperature: float = 1.0
    ) -> list[list[dict[str, Any]]]:
        """The answers of a batch."""
        names = self.model.config.id2label
        if "radii" in model_outputs:
            return [
                [{"label": names.get(label), "score": bound, "radius": radius}]
                for label, bound, radius in zip(*(model_outputs[key] for key in ("labels", "bounds", "radii")))
            ]
        logits = model_outputs["logits"].float() / temperature
        if not logits.isfinite().all():
            raise ValueError("the model's logits are not finite; its weights are damaged, or its dtype overflows.")
        function = getattr(function_to_apply, "value", "softmax")
        scores = logits if function == "none" else logits.sigmoid() if function == "sigmoid" else logits.softmax(dim=1)
        best = scores.sort(dim=1, descending=True, stable=True)
        chosen = zip(best.values[:, :top_k].tolist(), best.indices[:, :top_k].tolist())
        return [[{"label": names[index], "score": score} for score, index in zip(*pair)] for pair in chosen]


def _checked(image: Any) -> Any:
    """The image, unless it is an array that cannot be one image."""
    if isinstance(image, np.ndarray) and image.dtype.kind in "OSU":
        raise ValueError(
            f"an array of {image.dtype} holds no pixels; several names come as a list, such as array.tolist()."
        )
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim not in (2, 3):
        raise ValueError("an array of one image must have 3 axes, or 2 if it is gray.")
    return image


def _refuse(place: int, error: Exception, errors: dict[int, Exception]) -> None:
    """Note the error of an image; raise one that is no fault of the image."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        raise error
    errors[place] = error


def _kind(image: Any) -> tuple:
    """What arrays must have in common to be stacked."""
    names = ("shape", "dtype", "device", "layout")
    return (isinstance(image, torch.Tensor), *(getattr(image, name, None) for name in names))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
