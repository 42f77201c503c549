"""Any image classifier as a function of pixels in [0, 1]: a NULA, transformers', ONNX, a Python function."""

import copy
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig

from nula.configuration_nula import NulaConfig
from nula.evaluation.classes import ClassMatch, match_classes
from nula.evaluation.importing import NAMED, imported
from nula.evaluation.processing import Processing, processing_of
from nula.image_processing_nula import NulaImageProcessor
from nula.records.weights import class_names, found, load_model, weights_sha256

AT_DATA, AT_MODEL = "data", "model"  # size at which images are perturbed


@dataclass(frozen=True)
class Loaded:
    """A model before its classes are matched with those of the data.

    Args:
        model: pixels of its size, normalised, to logits, or to an output that has them.
        processing: the way to its input.
        labels: names of its outputs; None where it tells none.
        kind: what it is, for records.
        differentiable: whether its logits have gradients.
    """

    model: nn.Module
    processing: Processing
    labels: Sequence[str] | None
    kind: str
    differentiable: bool = True


class PixelClassifier(nn.Module):
    """A model with its processing inside: pixels (B, 3, H, W) in [0, 1] to logits (B, classes) of the data's classes.

    Differentiable where the model is. Images are perturbed at the data's size or, with `perturb_at` "model", after the
    resize to the model's.
    """

    def __init__(self, loaded: Loaded, classes: ClassMatch, perturb_at: str = AT_DATA):
        super().__init__()
        self.model, self.processing, self.classes = loaded.model, loaded.processing, classes
        self.labels = loaded.labels  # of the model's outputs
        self.kind, self.differentiable, self.perturb_at = loaded.kind, loaded.differentiable, perturb_at

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that it takes as they are; 32x32 where it takes any."""
        return self.processing.size

    @property
    def temperature(self) -> float | None:
        """What its configuration says that logits are to be divided by for calibrated scores, if it does."""
        temperature = getattr(getattr(self.model, "config", None), "calibration_temperature", None)
        return float(temperature) if isinstance(temperature, (int, float)) else None

    def resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize and crop pixels in [0, 1] to the model's size."""
        return self.processing.resized(pixels)

    def classify(self, resized: torch.Tensor) -> torch.Tensor:
        """Give the logits (B, classes) of pixels in [0, 1] of the model's size."""
        inputs = self.processing.normalized(resized).contiguous(memory_format=torch.channels_last)
        output = self.model(inputs)
        return self.classes.select(getattr(output, "logits", output))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give the logits (B, classes) of pixels in [0, 1] of any size."""
        return self.classify(self.resized(pixels))

    def after_resize(self) -> "PixelClassifier":
        """Return the same classifier for pixels of the model's size, which it does not resize and crop again."""
        classifier = copy.copy(self)
        classifier.processing = replace(self.processing, resize=None, crop=None)
        return classifier

    def record(self) -> dict[str, Any]:
        """Return what a result tells of the classifier beside its weights."""
        return {"kind": self.kind, "perturb_at": self.perturb_at, "classes": self.classes.record()}


class OnnxModel(nn.Module):
    """An ONNX file that maps float32 pixels to logits; it has no gradients.

    Where its batch is of a fixed size, it is given that many images at a time, the last ones filled up with black.
    """

    def __init__(self, file: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(f"{file} needs onnxruntime; pip install 'nula[export]'.") from error
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each fault
            raise ValueError(f"{file} cannot be loaded by onnxruntime: {error}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            told = ", ".join(f"{entry.name}: {entry.type} {entry.shape}" for entry in inputs)
            raise ValueError(f"{file} must have one float input of pixels (B, 3, H, W), has {told}.")
        self.input, self.output = inputs[0], outputs[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the pixels that it takes; None where that is open."""
        height, width = self.input.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    @property
    def labels(self) -> list[str] | None:
        """Names of the outputs, as `nula export` leaves them in the file; None where there are none."""
        stored = self.session.get_modelmeta().custom_metadata_map.get("labels")
        if stored is None:
            return None
        try:
            names = json.loads(stored)
            return [names[str(index)] for index in range(len(names))]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'its metadata "labels" must be JSON such as {{"0": "cat"}}, is {stored!r}.') from error

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give the logits of pixels (B, 3, H, W)."""
        fixed = self.input.shape[0]
        size = fixed if isinstance(fixed, int) else len(pixels)
        batches = pixels.detach().cpu().contiguous().split(size)
        return torch.cat([self._run(batch, size) for batch in batches]).to(pixels.device)

    def _run(self, pixels: torch.Tensor, size: int) -> torch.Tensor:
        filled = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, size - len(pixels)))
        [logits] = self.session.run([self.output.name], {self.input.name: filled.numpy()})
        return torch.from_numpy(logits[: len(pixels)])


class FunctionModel(nn.Module):
    """A Python function of pixels (B, 3, H, W) in [0, 1] to logits (B, classes)."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function  # a submodule where it is a torch module

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give the logits of pixels.

        Raises:
            ValueError: the function fails, or gives something else.
        """
        given = f"pixels {tuple(pixels.shape)}"
        try:
            # In the order of their axes, as its `view` may need them.
            logits: Any = self.function(pixels.contiguous())
        except Exception as error:  # it may raise anything
            raise ValueError(f"the function fails on {given}: {type(error).__name__}: {error}") from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(pixels):
            told = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ValueError(f"the function gives {told} for {given}, must be logits ({len(pixels)}, classes).")
        return logits


def load_classifier(
    model: str,
    names: Sequence[str] | None,
    device: torch.device,
    classes: Mapping[str, Any] | None = None,
    perturb_at: str = AT_DATA,
    *,
    revision: str | None = None,
) -> PixelClassifier:
    """Load a model, in eval mode, as a function of pixels to logits of the classes `names`.

    Args:
        model: folder or Hub id of a NULA or of any `AutoModelForImageClassification`, whose own processor says how
            large its input is and how it is normalised; an .onnx file of pixels in [0, 1] to logits; or
            package.module:function, a function of the same. No code from a Hub is run.
        names: classes of the data; logits are in their order. None for the model's own, in its own order.
        device: where the model is to be.
        classes: which of the model's classes they are, where names do not tell, see `evaluation.classes.read_classes`.
        perturb_at: "data" or "model", the size at which images are perturbed.
        revision: commit, branch or tag of a Hub id.

    Raises:
        OSError: there is no such folder, repository or file, or it holds no model.
        ValueError: classes that do not match, a processor that does something unknown here, weights that are damaged
            or not all there, or a model that needs code of its own, which is never run.
    """
    loaded = _load(model, revision)
    labels = loaded.labels
    if labels is None:
        if names is None:
            raise ValueError(f"{model} does not tell its classes; a function does by its attribute `labels`.")
        labels = [str(index) for index in range(_outputs(loaded))]
    match = match_classes(labels if names is None else names, labels, classes)
    classifier = PixelClassifier(loaded, match, perturb_at)
    classifier.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
    return classifier


@torch.inference_mode()
def _outputs(loaded: Loaded) -> int:
    """How many logits a model that does not name its classes gives."""
    logits: torch.Tensor = loaded.model.eval()(torch.zeros(1, 3, *loaded.processing.size))
    if logits.ndim != 2:
        raise ValueError(f"the model gives {tuple(logits.shape)} for one image, must be (1, classes).")
    return logits.shape[1]


def of_function(function: Callable[[torch.Tensor], torch.Tensor], classes: int) -> PixelClassifier:
    """Make a classifier of a function of pixels (B, 3, H, W) in [0, 1] to logits (B, `classes`)."""
    labels = [str(index) for index in range(classes)]
    return PixelClassifier(
        Loaded(FunctionModel(function), Processing(), labels, "function"), match_classes(labels, labels)
    )


def is_hub_id(model: str) -> bool:
    """Tell whether a model is given by its id on the Hub, and by no folder, file or function."""
    return not (_is_onnx(model) or _is_function(model) or Path(model).exists())


def model_sha256(model: str, revision: str | None = None) -> str | None:
    """Return the SHA-256 of a model's weights, see `weights_sha256`; of an .onnx file; None of a function.

    Raises:
        OSError: there are no weights.
    """
    if _is_onnx(model):
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()
    return None if _is_function(model) else weights_sha256(model, revision)


def require_derivatives(classifier: PixelClassifier, *, of_parameters: bool = False) -> None:
    """Raise ValueError unless the logits of `classifier` have gradients with respect to pixels, or to parameters."""
    has_parameters = any(parameter.requires_grad for parameter in classifier.parameters())
    if classifier.differentiable and (has_parameters or not of_parameters):
        pixels = torch.zeros(1, 3, *classifier.size, device=_device_of(classifier), requires_grad=True)
        if classifier(pixels).requires_grad:
            return
    raise ValueError(
        f"the study needs derivatives, and the model ({classifier.kind}) has none; give a folder or Hub id of weights."
    )


def _device_of(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _load(model: str, revision: str | None) -> Loaded:
    if _is_onnx(model):
        if not Path(model).is_file():
            raise FileNotFoundError(f"there is no file {model}.")
        onnx = OnnxModel(Path(model))
        return Loaded(onnx, Processing(resize=onnx.size), onnx.labels, "ONNX", differentiable=False)
    if _is_function(model):
        return _load_function(model)
    # AutoConfig would ask for trust_remote_code before it told that a folder holds a NULA.
    with found(model):
        model_type = PreTrainedConfig.get_config_dict(model, revision=revision)[0].get("model_type")
    with _explained(model):
        if model_type == NulaConfig.model_type:
            net = load_model(model, revision=revision)
            processor = NulaImageProcessor.from_pretrained(model, revision=revision or "main")
        else:
            net = load_model(model, AutoModelForImageClassification, revision)
            processor = AutoImageProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
    return Loaded(net, processing_of(processor), class_names(net), type(net).__name__)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Say of a model that cannot be loaded what would help."""
    try:
        yield
    except ImportError as error:  # such as timm's
        raise ValueError(f"{model} needs a package that is not installed: {error}") from error
    except (EOFError, pickle.UnpicklingError) as error:  # of pytorch_model.bin
        raise ValueError(f"the weights of {model} cannot be loaded: they are damaged ({error}).") from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{model} needs Python code of its own repository, which is never run here. Read that code, load the model "
            "in a function of yours from pixels in [0, 1] to logits, and give --model package.module:function."
        ) from error


def _load_function(model: str) -> Loaded:
    value = imported(model)
    if not callable(value):
        raise ValueError(f"{model} is {type(value).__name__}, must be a function of pixels to logits.")
    labels = getattr(value, "labels", None)
    return Loaded(FunctionModel(value), Processing(), labels and list(map(str, labels)), "function")


def _is_onnx(model: str) -> bool:
    return model.endswith(".onnx")


def _is_function(model: str) -> bool:
    return NAMED.fullmatch(model) is not None and not Path(model).exists()
