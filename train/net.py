"""The net as training sees it: the only place here that knows the names of its modules and parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from nula.configuration_nula import NulaConfig
from nula.data import to_pixels
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification

ARCHITECTURE = (  # what a run may choose of NulaConfig
    *("stem_channels", "stem_dropout", "hidden_sizes", "depths"),
    *("layer_convolutions", "contrast_epsilon"),
)
WHITENING_IMAGES = 5000  # evenly spaced ones, with 4.5 million patches at 32x32
PATCHES_AT_ONCE = 2**19


@dataclass(frozen=True)
class ParameterGroups:
    """The parameters of a net by how they are optimised.

    Args:
        convolutions: of the stages, each before a batch normalisation.
        weights: of the stem and the head.
        vectors: of the batch normalisations, and biases.
    """

    convolutions: list[nn.Parameter]
    weights: list[nn.Parameter]
    vectors: list[nn.Parameter]


def parameter_groups(model: NulaForImageClassification) -> ParameterGroups:
    """Sort the parameters of `model` by how they are optimised; each is in one group, but for those held fixed."""
    groups = ParameterGroups([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 1:
            groups.vectors.append(parameter)
        elif parameter.ndim == 4 and not name.startswith("nula.stem."):
            groups.convolutions.append(parameter)
        else:
            groups.weights.append(parameter)
    return groups


def architecture(config: NulaConfig) -> dict[str, object]:
    """Return the fields of ARCHITECTURE and their values."""
    return {field: getattr(config, field) for field in ARCHITECTURE}


def label_maps(names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of NulaConfig that hold the names of the classes: id2label and label2id."""
    id2label = dict(enumerate(names))
    return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}


def set_stem_dropout(model: NulaForImageClassification, probability: float) -> None:
    """Make the stem's dropout zero a value with `probability` in [0, 1); the configuration stays as it is."""
    model.nula.stem.dropout.p = probability


def name_classes(config: NulaConfig, names: Iterable[str]) -> None:
    """Give the classes of `config` these names, in order."""
    for field, value in label_maps(names).items():
        setattr(config, field, value)


def new_head(model: NulaForImageClassification, classes: int) -> None:
    """Give `model` a head of so many `classes`, with weights drawn by torch's global generator."""
    model.classifier = nn.Linear(model.classifier.in_features, classes)
    model._init_weights(model.classifier)


@torch.no_grad()
def whiten_stem(model: NulaForImageClassification, images: torch.Tensor, epsilon: float) -> None:
    """Make the stem's filters principal components of the 3x3 patches of `images`, and hold them fixed.

    The component v of patches with the mean square λ along it becomes the filters ±v / √(λ + epsilon), so that the
    responses to natural images are uncorrelated and, where λ is well above epsilon, of mean square 1: all the detail
    that is not noise arrives at the same strength. K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024),
    of 2x2 patches. The components with the largest λ are taken, as many as half the stem's channels.

    Args:
        model: its stem has an even number of channels, at most twice as many as a patch has values.
        images: uint8 (N, H, W, 3), of which WHITENING_IMAGES are taken, evenly spaced.
        epsilon: in squared units of what the stem is given, pixel_values or their normalised contrast.

    Raises:
        ValueError: the stem has an odd number of channels, or too many.
    """
    convolution = model.nula.stem.convolution
    values = convolution.weight[0].numel()  # of a patch
    count, odd = divmod(len(convolution.weight), 2)
    if odd or count > values:
        raise ValueError(
            f"stem_channels is {len(convolution.weight)}, must be even and at most {2 * values} for whitening_epsilon."
        )
    every = max(1, len(images) // WHITENING_IMAGES)
    images = images[::every][:WHITENING_IMAGES]
    moment = torch.zeros(values, values, dtype=torch.double, device=model.device)
    for chunk in images.split(max(1, PATCHES_AT_ONCE // images[0, ..., 0].numel())):
        pixels = normalize(to_pixels(chunk)).to(model.device)
        patches = F.unfold(model.nula.stem.contrast(pixels), kernel_size=3).double()  # (N, values, places)
        moment += torch.einsum("nip,njp->ij", patches, patches) / (len(images) * patches.shape[2])
    # A component's sign is arbitrary, and both are taken.
    variances, components = torch.linalg.eigh(moment.cpu())  # in rising order, components in columns
    variances, components = variances.flip(0)[:count], components.T.flip(0)[:count]
    filters = components / (variances + epsilon).sqrt().unsqueeze(1)
    convolution.weight.copy_(torch.cat([filters, -filters]).view_as(convolution.weight))
    convolution.weight.requires_grad_(False)


@torch.no_grad()
def average_statistics(model: NulaForImageClassification, accelerator: Accelerator) -> None:
    """Give all processes the mean over them of the running statistics of batch normalisation; alone, do nothing.

    Each process normalises by the statistics of its share of a batch, and without this the model would keep those of
    the first process. The mean of means is the batch's. The mean of variances is the batch's, too, but for chance: each
    is unbiased (n - 1), so that what the means of the shares differ by is in it already, and adding that would count
    it twice. Running statistics are linear in those of the batches, so that the mean may be taken after every step.
    """
    if accelerator.num_processes == 1:
        return
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    mean = accelerator.reduce(torch.cat(statistics), "mean")
    for buffer, values in zip(statistics, mean.split([len(buffer) for buffer in statistics]), strict=True):
        buffer.copy_(values)


@torch.no_grad()
def reorder_head(model: NulaForImageClassification, order: Sequence[int]) -> None:
    """Make output i of `model` what output order[i] was; `order` is a permutation."""
    rows = list(order)
    for parameter in model.classifier.parameters():  # weight (classes, features) and bias (classes,)
        parameter.copy_(parameter[rows])
