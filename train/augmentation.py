"""The augmentation of a training batch, on whole batches and on the device of the data: no loop over images."""

from functools import lru_cache

import torch

from nula.data import to_pixels
from nula.perturbations.appearance import uniform_noise
from nula.perturbations.sampling import checkerboard, decimate, resize_each
from nula.train.recipe import Recipe


def crop_and_flip(
    images: torch.Tensor, indices: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> torch.Tensor:
    """Images at `indices` of uint8 (N, H, W, 3), randomly moved and mirrored: float32 (B, 3, H, W) in [0, 1].

    Moving by up to `crop_padding` pixels with a reflected border is the random crop of a padded image. One gather picks
    images, rows and columns together; the result is laid out channels_last.
    """
    count, (height, width), device = len(indices), images.shape[1:3], images.device

    def moved(length: int) -> torch.Tensor:  # (B, length): source positions, reflected at the border
        padding = recipe.crop_padding
        offsets = torch.randint(-padding, padding + 1, (count, 1), generator=generator, device=device)
        positions = (torch.arange(length, device=device) + offsets).abs()
        return torch.where(positions >= length, 2 * (length - 1) - positions, positions)

    rows, columns = moved(height), moved(width)
    flipped = torch.rand(count, 1, generator=generator, device=device) < recipe.flip_probability
    columns = torch.where(flipped, columns.flip(1), columns)
    batch = images[indices.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]  # (B, H, W, 3)
    return to_pixels(batch)


@lru_cache
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied once, not in every step."""
    return torch.tensor(values, device=device)


def draw_operators(count: int, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """(B,) int64: 0 for images left alone, and for the augmented ones (`mask_aug`) the place in OPERATORS, from 1."""
    device = generator.device
    mask = torch.rand(count, generator=generator, device=device) < recipe.augmented_share
    probabilities = _on_device(recipe.operator_probabilities, device)
    operators = torch.multinomial(probabilities, count, replacement=True, generator=generator)
    return torch.where(mask, operators + 1, 0)


def perturb(pixels: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Send a random part of the batch through one operator each.

    (B, 3, H, W) in [0, 1] to the same, with the (B,) operators as `draw_operators` gives them.
    """
    count, side, device = len(pixels), pixels.shape[-1], pixels.device

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    operators = draw_operators(count, recipe, generator)
    sides = (side * uniform(*recipe.resize_scale)).round().long().clamp(min=1)
    epsilons = uniform(*recipe.checkerboard_epsilon).view(-1, 1, 1, 1)
    source = uniform_noise(pixels, recipe.uniform_amplitude, generator) if recipe.uniform_amplitude else pixels
    perturbed = (resize_each(source, sides), decimate(source), checkerboard(source, epsilons))
    for index, result in enumerate(perturbed, start=1):
        pixels = torch.where((operators == index).view(-1, 1, 1, 1), result, pixels)
    return pixels, operators
