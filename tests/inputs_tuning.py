"""Odd models whose convolutions are rescaled before fine-tuning."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from nula.configuration_nula import NulaConfig
from nula.modeling_nula import NulaForImageClassification, NulaModel

TITLE = "What rescale_convolutions() gives for odd models"


def trained(seed: int = 0) -> NulaForImageClassification:
    """A tiny net as training leaves one: weights of a root mean square of 0.0015, variances near the epsilon."""
    torch.manual_seed(seed)
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8, 12), depths=(1, 0))).eval()
    for layer in convolution_layers(model):
        nn.init.normal_(layer.convolution.weight, std=0.0015)
        for tensor, low in ((layer.normalization.weight, -1.0), (layer.normalization.running_mean, -0.01)):
            nn.init.uniform_(tensor, low, -low)
        nn.init.uniform_(layer.normalization.running_var, 1e-7, 1e-4)
    return model


def convolution_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "normalization")]


@torch.no_grad()
def compared(model: nn.Module, tolerance: float = 1e-4) -> str:
    """Rescale, and say whether that kept the answers and the very weights."""
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = pixels.to(next(model.parameters()).dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(pixels)[0].float()
    model.rescale_convolutions()
    difference = (model(pixels)[0].float() - before).abs().max().item()
    if all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()):
        return "the same weights"
    return "the same answers by other weights" if difference <= tolerance else f"answers that differ by {difference}"


def changed(change: Callable[[NulaForImageClassification], object], tolerance: float = 1e-4) -> Callable[[], str]:
    """A case: a trained net to which `change` is done first."""

    def case() -> str:
        model = trained()
        change(model)
        return compared(model, tolerance)

    return case


def first_layer(model: NulaForImageClassification) -> nn.Module:
    return convolution_layers(model)[0]


def no_statistics(model: NulaForImageClassification) -> None:
    layer = convolution_layers(model)[-1]
    layer.normalization = nn.BatchNorm2d(layer.normalization.num_features, track_running_stats=False)


def fresh(model: NulaForImageClassification) -> None:
    """Draw all weights and statistics anew."""
    for module in model.modules():
        model._init_weights(module)


@torch.no_grad()
def dead(layer: nn.Module, channels: slice) -> None:
    """Channels of zero weights, whose outputs have neither a mean nor a variance."""
    layer.convolution.weight[channels] = 0
    layer.normalization.running_mean[channels] = 0
    layer.normalization.running_var[channels] = 0


def frozen() -> str:
    model = trained()
    model.nula.requires_grad_(False)
    found = compared(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return f"{found}; trainable: {', '.join(trainable)}"


def in_training() -> str:
    model = trained().train()
    return f"training mode {'kept' if model.rescale_convolutions().training else 'lost'}"


def without_data() -> str:
    with torch.device("meta"):
        model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8,), depths=(1,)))
    return f"a model on {next(model.rescale_convolutions().parameters()).device}"


def saved(folder: Path) -> str:
    trained().rescale_convolutions().save_pretrained(folder / "rescaled")
    return compared(NulaForImageClassification.from_pretrained(folder / "rescaled").eval())


def for_other_classes(folder: Path) -> str:
    trained().save_pretrained(folder / "trained")
    model = NulaForImageClassification.from_pretrained(
        folder / "trained", id2label={0: "cat", 1: "dog"}, ignore_mismatched_sizes=True
    )
    return compared(model.eval())


def corpus(folder: Path) -> dict[str, Callable[[], str]]:
    """Name of each model to what tries it; files lie in `folder`."""

    def variances(value: float) -> Callable[[], str]:
        return changed(lambda model: first_layer(model).normalization.running_var.fill_(value))

    return {
        "a trained net": changed(lambda model: None),
        "one rescaled before": changed(lambda model: model.rescale_convolutions()),
        "one rescaled, saved and loaded": lambda: saved(folder),
        "one freshly drawn": changed(fresh),
        "one loaded for other classes": lambda: for_other_classes(folder),
        "one without its head": lambda: compared(trained().nula),
        "one of a single stage without residual layers": lambda: compared(
            NulaModel(NulaConfig(stem_channels=4, hidden_sizes=(8,), depths=(0,))).eval()
        ),
        "one whose body is frozen": frozen,
        "one in training mode": in_training,
        "one in bfloat16": changed(lambda model: model.bfloat16(), tolerance=0.02),
        "one in float16": changed(lambda model: model.half(), tolerance=0.005),
        "one in float64": changed(lambda model: model.double()),
        "one without data (meta)": without_data,
        "one with SyncBatchNorm": changed(nn.SyncBatchNorm.convert_sync_batchnorm),
        "a layer without running statistics": changed(no_statistics),
        "a convolution under weight normalisation": changed(
            lambda model: parametrizations.weight_norm(first_layer(model).convolution)
        ),
        "a pruned convolution": changed(
            lambda model: prune.l1_unstructured(first_layer(model).convolution, "weight", amount=0.5)
        ),
        "dead channels": changed(lambda model: dead(first_layer(model), slice(0, 3))),
        "a dead layer": changed(lambda model: dead(first_layer(model), slice(None))),
        "variances of 0": variances(0.0),
        "variances of 1e-40": variances(1e-40),
        "variances of 1e-20": variances(1e-20),
        "variances of 1e20": variances(1e20),
        "one channel's variance of 1e6": changed(
            lambda model: first_layer(model).normalization.running_var[:1].fill_(1e6)
        ),
    }
