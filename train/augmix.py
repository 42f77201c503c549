"""AugMix: random mixtures of chains of simple operators, batched on the device of the data.

D. Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty" (ICLR 2020). Its
list of operators holds none of the common corruptions: no contrast, colour, brightness, sharpness, noise or blur.

Every image is given the same work, and what is done to it is chosen by `torch.where`: no step waits for the device.
"""

import math

import torch
from torch.nn import functional as F

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TONAL = ("autocontrast", "equalize", "posterize", "solarize")
CHAINS = 3  # the paper's width
SEVERITY = 0.3  # of each operator's range; the paper's level 3 of 10
BINS = 64  # of the histogram that `equalize` takes, a quarter of the values of eight bits


def augmix(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mix each image with a mixture of three chains of one or two operators, (B, 3, H, W) in [0, 1] to the same.

    The chains are weighted by Dirichlet(1, 1, 1), and the image and their mixture by Beta(1, 1), as in the paper, whose
    chains are of one to three operators. A second operator is of the other kind than the first: one geometric, one
    tonal.
    """
    count, device = len(pixels), pixels.device

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    weights = -draw(CHAINS, count, 1, 1, 1).clamp(min=1e-6).log()
    weights = weights / weights.sum(dim=0)
    geometric_first = draw(CHAINS, count, 1, 1, 1) < len(GEOMETRIC) / (len(GEOMETRIC) + len(TONAL))
    two = draw(CHAINS, count, 1, 1, 1) < 2 / 3
    mixture = torch.zeros_like(pixels)
    for weight, geometric, both in zip(weights, geometric_first, two, strict=True):
        # The order of the two hardly matters, so geometric is always done before tonal.
        moved = torch.where(geometric | both, transform(pixels, generator), pixels)
        mixture = mixture + weight * torch.where(~geometric | both, retouch(moved, generator), moved)
    return pixels + draw(count, 1, 1, 1) * (mixture - pixels)


def transform(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Put each image through one of GEOMETRIC, of random strength and sign; borders are reflected.

    At most 30 degrees, a shear of 0.3, and a third of the side, times SEVERITY.
    """
    count, device = len(pixels), pixels.device
    kind = torch.randint(len(GEOMETRIC), (count,), generator=generator, device=device)
    amount = SEVERITY * (2 * torch.rand(count, generator=generator, device=device) - 1)

    def of(name: str, largest: float) -> torch.Tensor:
        return torch.where(kind == GEOMETRIC.index(name), largest * amount, 0.0)

    angle = of("rotate", math.pi / 6)
    # Rows of the map from places of the result to places of the image, in [-1, 1] along each axis.
    first = [angle.cos(), of("shear_x", 0.3) - angle.sin(), of("translate_x", 2 / 3)]
    second = [of("shear_y", 0.3) + angle.sin(), angle.cos(), of("translate_y", 2 / 3)]
    maps = torch.stack([torch.stack(first, dim=1), torch.stack(second, dim=1)], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(maps, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def retouch(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Put each image through one of TONAL, of random strength."""
    count, device = len(pixels), pixels.device
    kind = torch.randint(len(TONAL), (count, 1, 1, 1), generator=generator, device=device)
    amount = SEVERITY * torch.rand(count, 1, 1, 1, generator=generator, device=device)
    results = {
        "autocontrast": autocontrast(pixels),
        "equalize": equalize(pixels),
        "posterize": posterize(pixels, 4 - (4 * amount).floor()),
        "solarize": torch.where(pixels < 1 - amount, pixels, 1 - pixels),
    }
    for name, result in results.items():
        pixels = torch.where(kind == TONAL.index(name), result, pixels)
    return pixels


def autocontrast(pixels: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to [0, 1], as PIL's ImageOps.autocontrast but for flat ones, which become 0."""
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    return (pixels - low) / (high - low).clamp(min=1e-3)


def posterize(pixels: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep the first `bits` (B, 1, 1, 1) of the eight of each value, as PIL's ImageOps.posterize."""
    step = torch.exp2(8 - bits)
    return (pixels * 255 / step).floor() * step / 255


def equalize(pixels: torch.Tensor) -> torch.Tensor:
    """Give each channel a flat histogram: a value becomes the share of the channel's values below it."""
    bins = (pixels * (BINS - 1e-3)).long().flatten(2)  # (B, 3, H·W)
    counts = pixels.new_zeros(*bins.shape[:2], BINS).scatter_add_(2, bins, torch.ones_like(bins, dtype=pixels.dtype))
    below = counts.cumsum(dim=2) - counts / 2  # half of those in the same bin
    return (below / bins.shape[2]).gather(2, bins).view_as(pixels)
