"""The attack NULA is named for: a change of the image that its downsampled version does not contain.

x_high = x − U(D(x)) lies in the null space of the downsampling D; a classifier that leans on it can be led to another
answer by a δ with D(x + δ) = D(x). The search is projected gradient ascent on the loss (A. Madry et al., "Towards Deep
Learning Models Resistant to Adversarial Attacks", ICLR 2018) within ‖δ‖∞ ≤ ε.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

BISECTIONS = 40  # halves an interval of at most 2 pixel values to below float32's precision


def project_free(delta: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """No null space: the nearest point within the bounds, for comparison."""
    return delta.clamp(low, high)


def project_decimation(delta: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The nearest δ within the bounds that stride-2 decimation drops: 0 on even rows and columns."""
    projected = delta.clamp(low, high)
    projected[..., ::2, ::2] = 0
    return projected


def project_box(delta: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The nearest δ within the bounds whose 2x2 blocks have zero mean, which bilinear ×0.5 drops.

    (B, C, H, W) with even H and W. In each block it is clamp(δ − μ, low, high) with the μ that makes its sum 0, found
    by bisection; one exists, as low <= 0 <= high.
    """
    blocks, low_blocks, high_blocks = (
        F.pixel_unshuffle(tensor, 2).unflatten(1, (-1, 4)) for tensor in (delta, low, high)
    )
    below = (blocks - high_blocks).amin(dim=2, keepdim=True)  # so small a μ puts every value at its upper bound
    above = (blocks - low_blocks).amax(dim=2, keepdim=True)
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        positive = (blocks - middle).clamp(low_blocks, high_blocks).sum(dim=2, keepdim=True) > 0
        below, above = torch.where(positive, middle, below), torch.where(positive, above, middle)
    projected = (blocks - (below + above) / 2).clamp(low_blocks, high_blocks)
    return F.pixel_shuffle(projected.flatten(1, 2), 2)


PROJECTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "free": project_free,
    "box": project_box,
    "decimation": project_decimation,
}


def attack(
    classifier: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    projection: str,
    *,
    steps: int = 20,
) -> torch.Tensor:
    """x + δ for pixels x (B, 3, H, W) in [0, 1], with the loss of `labels` (B,) raised by `steps` of signed gradients.

    δ starts at 0, moves by 2.5 ε / steps at a time, and is projected after each move, by one of PROJECTIONS, onto
    its constraint with ‖δ‖∞ ≤ ε and x + δ in [0, 1], so that no clamping is left to be done afterwards.
    """
    low, high = (-pixels).clamp(min=-epsilon), (1 - pixels).clamp(max=epsilon)
    project, delta = PROJECTIONS[projection], torch.zeros_like(pixels)
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(classifier(pixels + delta), labels, reduction="sum")
        [gradient] = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            delta = project(delta + 2.5 * epsilon / steps * gradient.sign(), low, high)
    return pixels + delta
