"""Fourteen of the fifteen common corruptions of CIFAR-10-C, made anew: seeded, and on whole batches.

The kinds and constants are those of D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), in hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py. The images
are not those of CIFAR-10-C, whose random numbers were not kept, and a mean over fourteen is not one over fifteen:
figures on these must not be called CIFAR-10-C's. Frost, which needs photographs, is left out.

Each function takes pixels (B, 3, H, W) in [0, 1], a severity from 1 to 5 and a CPU generator, and gives the same shape.
The constants are those for 32x32 pixels at any size. `corrupt` rounds down to bytes, as the source does.
"""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

SEVERITIES = (1, 2, 3, 4, 5)
STANDARD = (  # of CIFAR-10-C, in the paper's order: published means are over these fifteen
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # of CIFAR-10-C, for validation, in no mean
SMALLEST = 9  # pixels a side, for borders to be reflected by eight

Corruption = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]


def gaussian_noise(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return pixels + sigma * torch.randn(pixels.shape, generator=generator)


def shot_noise(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    photons = (500, 250, 100, 75, 50)[severity - 1]  # that a pixel of value 1 receives on average
    return torch.poisson(pixels * photons, generator=generator) / photons


def impulse_noise(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit = torch.rand(pixels.shape, generator=generator) < share
    salt = (torch.rand(pixels.shape, generator=generator) > 0.5).float()
    return torch.where(hit, salt, pixels)


def defocus_blur(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    radius, softness = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    offsets = torch.arange(-8, 9).float()
    disk = (offsets.view(-1, 1).square() + offsets.square() <= radius**2).float()
    taps = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * softness**2))
    taps = taps / taps.sum()
    kernel = F.conv2d((disk / disk.sum())[None, None], torch.outer(taps, taps)[None, None], padding=1)
    padded = F.pad(pixels, (8, 8, 8, 8), mode="reflect")
    return F.conv2d(padded, kernel.expand(3, 1, 17, 17), groups=3)


def glass_blur(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    sigma, reach, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[severity - 1]
    count, _, height, width = pixels.shape
    blurred = _to_bytes(_blurred(pixels, sigma))
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    moves = (rows > reach) & (columns > reach)
    for _ in range(rounds):
        # The source walks from the last pixel to the first and copies one that lies up to `reach` before it, so that
        # every pixel it copies is still unchanged.
        back = torch.randint(-reach, 1, (2, count, height, width), generator=generator) * moves
        image = torch.arange(count).view(-1, 1, 1)
        blurred = blurred.permute(0, 2, 3, 1)[image, rows + back[0], columns + back[1]].permute(0, 3, 1, 2)
    return _blurred(blurred, sigma)


def motion_blur(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    return _motion_blurred(pixels, radius, sigma, _uniform(len(pixels), -45, 45, generator))


def zoom_blur(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    return (pixels + sum(_zoomed(pixels, float(factor)) for factor in factors)) / (len(factors) + 1)


def snow(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    mean, std, zoom, threshold, radius, sigma, share = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    count, _, height, width = pixels.shape
    flakes = _zoomed(mean + std * torch.randn(count, 1, height, width, generator=generator), zoom)
    flakes = _to_bytes(torch.where(flakes < threshold, 0, flakes))
    flakes = _motion_blurred(flakes, radius, sigma, _uniform(count, -135, -45, generator))
    whitened = torch.maximum(pixels, 1.5 * _luma(pixels) + 0.5)
    return share * pixels + (1 - share) * whitened + flakes + flakes.flip(2, 3)


def fog(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    strength, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    brightest = pixels.amax(dim=(1, 2, 3), keepdim=True)
    count, _, height, width = pixels.shape
    side = 2 ** math.ceil(math.log2(max(height, width)))
    clouds = _plasma(count, side, decay, generator)[:, None, :height, :width]
    return (pixels + strength * clouds) * brightest / (brightest + strength)


def brightness(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    value = pixels.amax(dim=1, keepdim=True)  # of HSV, in which hue and saturation stay
    brighter = (value + (0.05, 0.10, 0.15, 0.20, 0.30)[severity - 1]).clamp(max=1)
    return torch.where(value > 0, pixels * brighter / value.clamp(min=1e-6), brighter)


def contrast(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] * (pixels - mean)


def elastic_transform(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = pixels.shape
    strength, smoothness, corner = (
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)
    )[severity - 1]  # fmt: skip
    # An affine map that moves three points, (x, y) in pixels, by up to `corner` of the shorter side each.
    side = min(height, width)
    middle = torch.tensor([width // 2, height // 2])
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (side // 3) + middle
    moved = points + side * corner * (2 * torch.rand(count, 3, 2, generator=generator) - 1)
    homogeneous = torch.cat([moved, torch.ones(count, 3, 1)], dim=2)
    back = torch.linalg.solve(homogeneous, points.expand(count, 3, 2))  # (B, 3, 2): where a new pixel comes from
    x, y = torch.meshgrid(torch.arange(width).float(), torch.arange(height).float(), indexing="xy")
    position = torch.stack([x, y, torch.ones_like(x)], dim=2) @ back.view(count, 1, 3, 2)
    pixels = _sampled(pixels, position, "reflect_101")
    noise = 2 * torch.rand(count, height, width, 2, generator=generator).numpy() - 1
    sigma = side * smoothness
    shift = gaussian_filter(noise, (0, sigma, sigma, 0), mode="reflect", truncate=3) * side * strength
    position = torch.stack([x, y], dim=2) + torch.from_numpy(shift.astype(np.float32))
    return _sampled(pixels, position, "reflect")


def pixelate(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    scale = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    small = int(pixels.shape[3] * scale), int(pixels.shape[2] * scale)

    def change(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _by_pillow(pixels, change)


def jpeg_compression(pixels: torch.Tensor, severity: int, generator: torch.Generator) -> torch.Tensor:
    quality = (80, 65, 58, 50, 40)[severity - 1]

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(pixels, change)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, fog),
        *(brightness, contrast, elastic_transform, pixelate, jpeg_compression),
    )
}


def corrupt(pixels: torch.Tensor, name: str, severity: int, generator: torch.Generator) -> torch.Tensor:
    """Put `pixels` (B, 3, H, W) in [0, 1] under one of CORRUPTIONS: clipped, rounded down to a byte, over 255.

    Raises:
        ValueError: an unknown corruption, a severity that is not 1 to 5, or images of fewer than 9 pixels a side.
    """
    if min(pixels.shape[2:]) < SMALLEST:
        raise ValueError(f"corruptions need {SMALLEST} pixels a side, got {pixels.shape[2]}x{pixels.shape[3]}.")
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"no corruption {name!r} of severity {severity!r}; there are {', '.join(CORRUPTIONS)}, severities 1 to 5."
        )
    return _to_bytes(CORRUPTIONS[name](pixels.cpu(), severity, generator)).to(pixels.device)


def _to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    # The small number undoes the rounding of k / 255 * 255 to just below k in float32.
    return (pixels.clamp(0, 1) * 255 + 1e-4).floor() / 255


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _luma(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)


def _blurred(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(pixels.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def _by_pillow(pixels: torch.Tensor, change: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    arrays = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(array))) for array in arrays])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


def _zoomed(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """The middle of each image enlarged to the whole, bilinear with the corner pixels' centres kept in place."""
    sides = pixels.shape[2:]
    kept = [math.ceil(side / factor) for side in sides]
    enlarged = F.interpolate(
        _middle(pixels, kept), size=[round(side * factor) for side in kept], mode="bilinear", align_corners=True
    )
    return _middle(enlarged, sides)


def _middle(pixels: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """The middle of each image, (height, width) large."""
    top, left = ((length - side) // 2 for length, side in zip(pixels.shape[2:], sides))
    return pixels[:, :, top : top + sides[0], left : left + sides[1]]


def _motion_blurred(pixels: torch.Tensor, radius: int, sigma: float, degrees: torch.Tensor) -> torch.Tensor:
    """ImageMagick's motion blur: half a Gaussian of 2 radius + 1 taps along a line that starts at the pixel itself.

    `degrees` (B,), clockwise from the positive x axis; beyond the border the border is repeated.
    """
    count, _, height, width = pixels.shape
    taps = torch.arange(2 * radius + 1).float()
    weights = torch.exp(-taps.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    angles = torch.deg2rad(degrees).view(-1, 1)
    right, down = ((taps * direction - 0.5).ceil().long() for direction in (angles.cos(), angles.sin()))  # (B, taps)
    image, rows, columns = torch.arange(count).view(-1, 1, 1), torch.arange(height).view(-1, 1), torch.arange(width)
    channels_last = pixels.permute(0, 2, 3, 1)
    blurred = torch.zeros_like(channels_last)
    for tap, weight in enumerate(weights):
        y = (rows + down[:, tap].view(-1, 1, 1)).clamp(0, height - 1)
        x = (columns + right[:, tap].view(-1, 1, 1)).clamp(0, width - 1)
        blurred = blurred + weight * channels_last[image, y, x]
    return blurred.permute(0, 3, 1, 2)


def _plasma(count: int, side: int, decay: float, generator: torch.Generator) -> torch.Tensor:
    """Cloud maps (B, side, side) from 0 to 1 by the diamond-square algorithm on a torus; `side` is a power of two."""
    clouds = torch.zeros(count, side, side, dtype=torch.float64)
    step, wobble = side, 100.0

    def wobbled(total: torch.Tensor) -> torch.Tensor:
        noise = 2 * torch.rand(total.shape, generator=generator, dtype=torch.float64) - 1
        return total / 4 + wobble**2 * noise

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        clouds[:, half::step, half::step] = wobbled(pairs + pairs.roll(-1, 2))
        centers = clouds[:, half::step, half::step]
        clouds[:, ::step, half::step] = wobbled(centers + centers.roll(1, 1) + corners + corners.roll(-1, 2))
        clouds[:, half::step, ::step] = wobbled(centers + centers.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wobble = half, wobble / decay
    clouds -= clouds.amin(dim=(1, 2), keepdim=True)
    return (clouds / clouds.amax(dim=(1, 2), keepdim=True)).float()


def _sampled(pixels: torch.Tensor, position: torch.Tensor, border: str) -> torch.Tensor:
    """Bilinear samples at `position` (B, H, W, 2), (x, y) in pixels; the border is mirrored, at ("reflect_101") or
    behind ("reflect") its outermost pixels."""
    aligned = border == "reflect_101"
    size = torch.tensor([pixels.shape[3], pixels.shape[2]])
    grid = 2 * position / (size - 1) - 1 if aligned else (2 * position + 1) / size - 1
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=aligned)
