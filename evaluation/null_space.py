"""The attack NULA is named for: a change of the image that its downsampled version does not contain.

x_high = x − U(D(x)) lies in the null space of the downsampling D; a classifier that leans on it can be led to another
answer by a δ with D(x + δ) = D(x). The search is projected gradient ascent on the loss (A. Madry et al., "Towards Deep
Learning Models Resistant to Adversarial Attacks", ICLR 2018) within ‖δ‖∞ ≤ ε.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

STEPS = 20  # of the ascent
BISECTIONS = 40  # halves an interval of at most 2 pixel values to below float32's precision


Projection = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def within_bounds(delta: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The nearest δ with low <= δ <= high, in no null space."""
    return delta.clamp(low, high)


def without_kept_pixels(delta: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The nearest δ within the bounds that stride-2 decimation drops: 0 on even rows and columns."""
    projected = delta.clamp(low, high)
    projected[..., ::2, ::2] = 0
    return projected


def without_block_means(delta: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The nearest δ within the bounds whose 2x2 blocks have zero mean, which bilinear ×0.5 drops.

    (B, C, H, W) with even H and W. In each block it is clamp(δ − μ, low, high) with the μ that makes its sum 0, found
    by bisection; one exists, as low <= 0 <= high.

    Raises:
        ValueError: a side is odd.
    """
    height, width = delta.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(
            f"the attack within 2x2 blocks needs even sides, got {height}x{width}; give --perturb_at model."
        )
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


PROJECTIONS: dict[str, Projection] = {
    "free": within_bounds,
    "box": without_block_means,
    "decimation": without_kept_pixels,
}


def attack(
    classifier: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    projection: str,
    *,
    steps: int = STEPS,
) -> torch.Tensor:
    """x + δ for pixels x (B, 3, H, W) in [0, 1], with the loss of `labels` (B,) raised by `steps` of signed gradients.

    δ starts at 0 and moves by 2.5 ε / steps at a time along the sign of the gradient within the null space: the signs
    of a whole gradient whose blocks are of one sign would be projected to nothing. After each move it is projected, by
    one of PROJECTIONS, onto its constraint with ‖δ‖∞ ≤ ε and x + δ in [0, 1], so that no clamping is left to be done.
    """
    low, high = (-pixels).clamp(min=-epsilon), (1 - pixels).clamp(max=epsilon)
    project, delta = PROJECTIONS[projection], torch.zeros_like(pixels)
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(classifier(pixels + delta), labels, reduction="sum")
        [gradient] = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            inside = _linear(project, gradient)
            delta = project(delta + 2.5 * epsilon / steps * inside.sign(), low, high)
    return pixels + delta


def _linear(project: Projection, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient's part in the null space: its projection within bounds that are never reached."""
    bound = torch.full_like(gradient, 4 * float(gradient.abs().max()) + 1e-12)
    return project(gradient, -bound, bound)
