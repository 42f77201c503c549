"""Operators that change the sampling structure of an image: resize, decimate, checkerboard.

All take `pixels`, float32 in [0, 1] of shape (B, C, H, W), and return the same shape, clamped to [0, 1].
"""

from functools import lru_cache

import torch
from torch.nn import functional as F

# "bilinear": linear interpolation down and up, without antialiasing. "area": the mean over the pixels that fall
# together, and linear interpolation up. "gaussian": no resampling, but the low-pass that scikit-image puts before one,
# of a standard deviation of (H/n - 1)/2 pixels for n samples.
KERNELS = ("bilinear", "area", "gaussian")


def resize(pixels: torch.Tensor, scale: float, mode: str) -> torch.Tensor:
    """Resample to `scale` of each side and back, without antialiasing.

    `mode` is "nearest", "bilinear" or "bicubic" as in `torch.nn.functional.interpolate` (align_corners False);
    "nearest" at scale 0.5 keeps the even rows and columns. `scale` is in (0, 1].
    """
    sides = pixels.shape[-2:]
    small = F.interpolate(pixels, size=[max(1, round(side * scale)) for side in sides], mode=mode)
    return F.interpolate(small, size=sides, mode=mode).clamp(0, 1)


def resize_each(pixels: torch.Tensor, sides: torch.Tensor, kernels: torch.Tensor | None = None) -> torch.Tensor:
    """Resampling of each image to a size of its own and back: image b to (sides[b], sides[b]).

    Such a resampling is linear and separable, so down and up again is one matrix along each axis, and a whole batch is
    two batched matrix products whatever its mixture of sizes and kernels. Images must be square; `sides` is an integer
    tensor (B,) in [1, H], and `kernels` one of places in KERNELS, all "bilinear" unless given.
    """
    height, width = pixels.shape[-2:]
    if height != width:
        raise ValueError(f"resize_each needs square images, got {height}x{width}.")
    tables = _round_trips(height, pixels.device)
    matrices = (tables[0][sides] if kernels is None else tables[kernels, sides]).to(pixels.dtype).unsqueeze(1)
    return (matrices @ pixels @ matrices.transpose(-1, -2)).clamp(0, 1)  # matrices (B, 1, H, H)


@lru_cache(maxsize=8)
def _round_trips(length: int, device: torch.device) -> torch.Tensor:
    """(KERNELS, length + 1, length, length): [k, n] takes a signal of `length` to n samples and back; no n is 0."""
    basis = torch.eye(length).unsqueeze(0)  # channel c holds the unit impulse at c
    places = torch.arange(length, dtype=torch.float32)
    # (length, 3, length): distances from each place to those of the signal and of its two mirror images.
    distances = torch.stack([places, -1 - places, 2 * length - 1 - places]) - places.view(-1, 1, 1)
    matrices = torch.zeros(len(KERNELS), length + 1, length, length)
    for side in range(1, length + 1):
        smaller = F.interpolate(basis, size=side, mode="linear"), F.adaptive_avg_pool1d(basis, side)
        for place, small in enumerate(smaller):
            matrices[place, side] = F.interpolate(small, size=length, mode="linear")[0].T
        sigma = (length / side - 1) / 2
        weights = torch.exp(-0.5 * (distances / max(sigma, 1e-3)) ** 2).sum(dim=1)
        matrices[2, side] = weights / weights.sum(dim=1, keepdim=True)
    return matrices.to(device)


def decimate(pixels: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Keep every `factor`-th row and column with no smoothing, and repeat each kept pixel, up to the image's border."""
    height, width = pixels.shape[-2:]
    kept = pixels[..., ::factor, ::factor]
    repeated = kept.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return repeated[..., :height, :width].clamp(0, 1)


def checkerboard(pixels: torch.Tensor, epsilon: float | torch.Tensor) -> torch.Tensor:
    """Add the Nyquist pattern of amplitude ε: −ε on pixel (0, 0), then alternating, the same on all channels.

    `epsilon` is a number, or a tensor that broadcasts, such as (B, 1, 1, 1) for one amplitude an image.
    """
    rows = torch.arange(pixels.shape[-2], device=pixels.device).unsqueeze(1)
    columns = torch.arange(pixels.shape[-1], device=pixels.device)
    pattern = ((rows + columns) % 2 * 2 - 1).to(pixels.dtype)
    return (pixels + epsilon * pattern).clamp(0, 1)
