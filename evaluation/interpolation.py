"""The straight line between two models' weights: accuracy along it, and the shape of the loss in its direction."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from nula.evaluation.jacobian import require_evaluation_mode


@torch.no_grad()
def interpolate(start: torch.nn.Module, end: torch.nn.Module, alpha: float) -> torch.nn.Module:
    """A new model at start + α (end − start): parameters and BatchNorm statistics alike; counters are start's.

    α beyond [0, 1] extrapolates; a running variance is then kept at or above 0.

    Raises:
        ValueError: the models have different tensors.
    """
    first, last = start.state_dict(), end.state_dict()
    if {name: tensor.shape for name, tensor in first.items()} != {name: tensor.shape for name, tensor in last.items()}:
        raise ValueError("only models of the same architecture can be interpolated.")
    mixed = {}
    for name, tensor in first.items():
        mixed[name] = torch.lerp(tensor, last[name], alpha) if tensor.is_floating_point() else tensor.clone()
        if name.endswith("running_var"):
            mixed[name].clamp_(min=0)
    model = deepcopy(start)
    model.load_state_dict(mixed)
    return model.eval()


def with_new_statistics(model: torch.nn.Module, inputs: torch.Tensor, batch_size: int = 500) -> torch.nn.Module:
    """A copy of `model` with BatchNorm statistics measured anew, as plain means over batches of `inputs` (N, …).

    Dropout stays off.
    """
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    update_bn(inputs.split(batch_size), model)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class DirectionalShape:
    """Slope and curvature of a loss along Δ, one value for each of the batches: dL/dα and d²L/dα² at α = 0."""

    slopes: list[float]
    curvatures: list[float]


def shape_along(
    model: torch.nn.Module,
    direction: dict[str, torch.Tensor],
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
) -> DirectionalShape:
    """First and second derivative in α of the loss of `model` at θ + α Δ.

    Args:
        model: maps inputs to logits; in eval mode and float32 (ValueError otherwise). BatchNorm statistics stay.
        direction: Δ, parameter name to tensor.
        batches: (inputs, labels); each gives one slope and one curvature, so that their spread can be told.
    """
    require_evaluation_mode(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    slopes, curvatures = [], []
    for inputs, labels in batches:

        def value(alpha: torch.Tensor, inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> torch.Tensor:
            moved = {name: parameter + alpha * direction[name] for name, parameter in parameters.items()}
            return loss(torch.func.functional_call(model, moved, (inputs,)), labels)

        alpha = torch.zeros((), device=inputs.device, requires_grad=True)
        [slope] = torch.autograd.grad(value(alpha), alpha, create_graph=True)
        [curvature] = torch.autograd.grad(slope, alpha)
        slopes.append(slope.item())
        curvatures.append(curvature.item())
    return DirectionalShape(slopes=slopes, curvatures=curvatures)
