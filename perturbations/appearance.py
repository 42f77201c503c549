"""Operators that change place, colour, sharpness or noise: shift, brightness, contrast, grayscale, blur, noise.

All take `pixels`, float32 in [0, 1] of shape (B, C, H, W), and return the same shape, clamped to [0, 1].
"""

import torch
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's "L" mode


def shift(pixels: torch.Tensor, down: int = 0, right: int = 0) -> torch.Tensor:
    """Move the content by whole pixels, circularly."""
    return pixels.roll((down, right), dims=(-2, -1)).clamp(0, 1)


def brightness(pixels: torch.Tensor, offset: float) -> torch.Tensor:
    """Add `offset` to every channel."""
    return (pixels + offset).clamp(0, 1)


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """0.299 R + 0.587 G + 0.114 B: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    return (pixels * weights).sum(dim=-3, keepdim=True)


def contrast(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Pull every pixel towards the mean luma m of its image: factor·x + (1 − factor)·m (PIL's and torchvision's)."""
    mean = luma(pixels).mean(dim=(-2, -1), keepdim=True)
    return (factor * pixels + (1 - factor) * mean).clamp(0, 1)


def grayscale(pixels: torch.Tensor) -> torch.Tensor:
    """The luma on all three channels."""
    return luma(pixels).expand_as(pixels).clamp(0, 1)


def gaussian_blur(pixels: torch.Tensor, kernel_size: int = 5, sigma: float = 1.0) -> torch.Tensor:
    """Convolve each channel with a normalised Gaussian of `sigma` pixels; `kernel_size` is odd, borders reflect.

    Raises:
        ValueError: the image is not larger than half the kernel, so that its border cannot be reflected.
    """
    radius = kernel_size // 2
    if min(pixels.shape[-2:]) <= radius:
        raise ValueError(
            f"an image of {pixels.shape[-2]}x{pixels.shape[-1]} pixels cannot be blurred by a kernel of {kernel_size}; "
            f"it needs {radius + 1} pixels a side."
        )
    offsets = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = pixels.shape[-3]
    padded = F.pad(pixels, (radius,) * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(blurred, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels).clamp(0, 1)


def gaussian_noise(pixels: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Add N(0, σ²) to every value. A generator on the CPU gives the same noise to pixels on any device."""
    noise = torch.randn(pixels.shape, generator=generator, dtype=pixels.dtype, device=generator.device)
    return (pixels + sigma * noise.to(pixels.device)).clamp(0, 1)


def uniform_noise(pixels: torch.Tensor, amplitude: float, generator: torch.Generator) -> torch.Tensor:
    """Add U(−amplitude, amplitude) to every value; `generator` lives on the pixels' device."""
    noise = torch.rand(pixels.shape, generator=generator, dtype=pixels.dtype, device=pixels.device)
    return (pixels + amplitude * (2 * noise - 1)).clamp(0, 1)
