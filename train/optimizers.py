"""Muon for convolutions, AdamW for the rest, and the schedule of both."""

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from nula.modeling_nula import NulaForImageClassification
from nula.train.net import parameter_groups
from nula.train.recipe import Recipe

MOMENTUM = 0.95  # torch.optim.Muon's default
NEWTON_SCHULZ_STEPS = 4  # torch.optim.Muon takes 5, which costs a quarter more; not tuned


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by the nearest orthogonal one, on weights of constant size.

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the scale 0.2 √max(m, n) of
    J. Liu et al., "Muon is scalable for LLM training" (2025), which gives an (m, n) update the root mean square 0.2,
    about AdamW's, so that a learning rate means the same in both. torch.optim.Muon takes matrices alone; here a
    convolution's weight (out, in, h, w) is the matrix (out, in·h·w).

    Before a batch normalisation the size of the weights sets the relative size of a step, so each parameter is scaled
    back to the root mean square `rms` after its step. A small `rms` also damps channels whose variance comes near the
    normalisation's epsilon.

    Args:
        parameters: of at least two axes, each before a batch normalisation.
        lr: learning rate; a step changes the weights by about 0.2 · lr / rms of their size.
        rms: root mean square that every parameter is kept at, from the first step on.
        dtype: of the orthogonalization, which tolerates the rounding of bfloat16 (K. Jordan); torch.optim.Muon always
            takes that. Weights and momentum stay as they are.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, rms: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(parameters, {"lr": lr, "rms": rms, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(MOMENTUM).add_(parameter.grad)
                update = parameter.grad.add(momentum, alpha=MOMENTUM)  # Nesterov's
                direction = orthogonalize(update.flatten(1).to(group["dtype"]))
                scale = 0.2 * math.sqrt(max(direction.shape))
                parameter.add_(direction.view(parameter.shape).to(parameter.dtype), alpha=-group["lr"] * scale)
                parameter.mul_(group["rms"] * math.sqrt(parameter.numel()) / parameter.norm())


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """About U Vᵀ of `matrix` (m, n) = U S Vᵀ, by a quintic Newton-Schulz iteration with Jordan's coefficients.

    It leaves the larger singular values near 1, not at it, and the smallest below.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


def build_optimizers(
    model: NulaForImageClassification, recipe: Recipe, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Make the recipe's optimiser of the convolutions behind the stem, and AdamW for the rest.

    `dtype` is that of Muon's orthogonalization. Batch normalisation and biases are not decayed, as is customary.
    """
    parameters = parameter_groups(model)
    with_muon, decay = recipe.optimizer == "muon", recipe.weight_decay
    groups = [
        {"params": parameters.weights + ([] if with_muon else parameters.convolutions), "weight_decay": decay},
        {"params": parameters.vectors, "weight_decay": 0.0, "lr": recipe.learning_rate * recipe.vector_rate_factor},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.learning_rate)]
    if with_muon:
        optimizers.append(Muon(parameters.convolutions, lr=recipe.learning_rate, rms=recipe.weight_rms, dtype=dtype))
    return optimizers


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> SequentialLR:
    """Linear warm-up and cosine annealing to 0, then the restarts, stepped after every batch."""
    warmup, cosine, length = (
        epochs * steps_per_epoch for epochs in (recipe.warmup_epochs, recipe.cosine_epochs, recipe.restart_epochs)
    )

    def restart(step: int) -> float:
        return recipe.restart_factor / 2 * (1 + math.cos(math.pi * step / length))

    schedules = [LinearLR(optimizer, total_iters=warmup), CosineAnnealingLR(optimizer, T_max=cosine)]
    schedules += [LambdaLR(optimizer, restart) for _ in range(recipe.restarts)]
    milestones = [warmup, *(epochs * steps_per_epoch for epochs in recipe.cycle_ends[:-1])]
    return SequentialLR(optimizer, schedules, milestones=milestones)
