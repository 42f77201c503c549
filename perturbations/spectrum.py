"""Operators that add or remove single spatial frequencies.

All take `pixels`, float32 in [0, 1] of shape (B, C, H, W), and return the same shape, clamped to [0, 1].
"""

import math

import torch


def add_wave(
    pixels: torch.Tensor, down: float, right: float, amplitude: float, generator: torch.Generator
) -> torch.Tensor:
    """Add a Fourier basis image, whose sign is drawn for every channel of every image.

    It is the basis of D. Yin et al., "A Fourier Perspective on Model Robustness in Computer Vision" (NeurIPS 2019): the
    sum of a frequency's two complex waves, whose phase is that of cos x - sin x, scaled to a given size.

    Args:
        pixels: the images.
        down, right: frequency along each axis in cycles per pixel, in [-0.5, 0.5]; rounded to whole cycles an image.
        amplitude: root mean square of what is added, in pixel values.
        generator: of the signs; one on the CPU gives the same signs to pixels on any device.
    """
    height, width = pixels.shape[-2:]
    rows = torch.arange(height, device=pixels.device).unsqueeze(1) * (round(down * height) / height)
    columns = torch.arange(width, device=pixels.device) * (round(right * width) / width)
    phase = 2 * math.pi * (rows + columns)
    wave = (torch.cos(phase) - torch.sin(phase)).to(pixels.dtype)
    wave = amplitude * wave / wave.square().mean().sqrt()
    signs = torch.randint(0, 2, (*pixels.shape[:2], 1, 1), generator=generator, device=generator.device) * 2 - 1
    return (pixels + signs.to(pixels.device) * wave).clamp(0, 1)


def low_pass(pixels: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Keep the frequencies of at most `cutoff` cycles per pixel, in (0, 0.5 √2], and the mean."""
    return _filtered(pixels, cutoff, low=True)


def high_pass(pixels: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Keep the frequencies above `cutoff` cycles per pixel, in [0, 0.5 √2), and the mean."""
    return _filtered(pixels, cutoff, low=False)


def _filtered(pixels: torch.Tensor, cutoff: float, low: bool) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    down = torch.fft.fftfreq(height, device=pixels.device).unsqueeze(1)
    right = torch.fft.rfftfreq(width, device=pixels.device)
    radius = torch.sqrt(down.square() + right.square())
    kept = (radius <= cutoff + 1e-6) == low
    kept[0, 0] = True
    filtered: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(pixels) * kept, s=(height, width))
    return filtered.clamp(0, 1)
