"""The augmentation of a training batch, on whole batches and on the device of the data: no loop over images."""

from functools import lru_cache

import torch

from nula.data import to_pixels
from nula.perturbations.appearance import uniform_noise
from nula.perturbations.sampling import KERNELS, checkerboard, decimate, resize_each
from nula.train.augmix import augmix
from nula.train.recipe import Recipe


def augment(
    images: torch.Tensor, indices: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images at `indices` of uint8 (N, H, W, 3), augmented: float32 (B, 3, H, W) in [0, 1], channels_last.

    With them the (B,) operators as `draw_operators` gives them. What a recipe leaves out draws no random numbers.
    """
    pixels = crop_and_flip(images, indices, recipe, generator)
    if recipe.augmix_share:
        # An exact share, at no cost for the others.
        order = torch.rand(len(pixels), generator=generator, device=pixels.device).argsort()
        chosen = order[: round(recipe.augmix_share * len(pixels))]
        pixels = pixels.index_copy(0, chosen, augmix(pixels[chosen], generator))
    if recipe.channel_mixing_probability:
        pixels = mix_channels(pixels, recipe.channel_mixing_probability, generator)
    pixels, operators = perturb(pixels, recipe, generator)
    if recipe.noise_probability:
        pixels = add_noise(pixels, recipe, generator)
    if recipe.cutout_probability:
        pixels = cut_out(pixels, recipe, generator)
    return pixels.contiguous(memory_format=torch.channels_last), operators


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
def _on_device(values: tuple[float | int, ...], device: torch.device) -> torch.Tensor:
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
    kernels = None
    if recipe.resize_kernels != KERNELS[:1]:
        places = _on_device(tuple(KERNELS.index(kernel) for kernel in recipe.resize_kernels), device)
        kernels = places[torch.randint(len(places), (count,), generator=generator, device=device)]
    epsilons = uniform(*recipe.checkerboard_epsilon).view(-1, 1, 1, 1)
    source = uniform_noise(pixels, recipe.uniform_amplitude, generator) if recipe.uniform_amplitude else pixels
    perturbed = (resize_each(source, sides, kernels), decimate(source), checkerboard(source, epsilons))
    for index, result in enumerate(perturbed, start=1):
        pixels = torch.where((operators == index).view(-1, 1, 1, 1), result, pixels)
    return pixels, operators


def mix_channels(pixels: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Pull images towards gray, each by a share of its own: (1 - a)·x + a·(w · x), a ~ U(0, 1), w ~ Dirichlet(1, 1, 1).

    Each image is pulled with `probability`.
    """
    count, channels = pixels.shape[:2]
    draws = torch.rand(count, channels + 2, 1, 1, generator=generator, device=pixels.device)
    chosen, amount, weights = draws[:, :1] < probability, draws[:, 1:2], -draws[:, 2:].clamp(min=1e-6).log()
    gray = (pixels * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return torch.where(chosen, pixels + amount * (gray - pixels), pixels)


def add_noise(pixels: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Add normal noise of a standard deviation of its own to each image, with the recipe's probability."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=pixels.device)

    chosen, sparse, strength = draw(3, len(pixels), 1, 1, 1)
    low, high = recipe.noise_sigma
    sigma = torch.where(chosen < recipe.noise_probability, low + (high - low) * strength, 0.0)
    noise = sigma * torch.randn(pixels.shape, generator=generator, device=pixels.device)
    if recipe.noise_sparse_share:  # of the same power as dense noise of that sigma
        struck = draw(*pixels.shape) < 1 / 4
        noise = torch.where(sparse < recipe.noise_sparse_share, 2 * noise * struck, noise)
    return (pixels + noise).clamp(0, 1)


def cut_out(pixels: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Make a square of each image gray (0.5), with the recipe's probability; the square may reach beyond the border."""
    count, device, size = len(pixels), pixels.device, recipe.cutout_size
    chosen = torch.rand(count, 1, 1, 1, generator=generator, device=device) < recipe.cutout_probability

    def within(length: int) -> torch.Tensor:  # (B, length): along one axis; the centre may be any pixel
        first = torch.randint(-(size // 2), length - size // 2, (count, 1), generator=generator, device=device)
        places = torch.arange(length, device=device)
        return (places >= first) & (places < first + size)

    rows, columns = within(pixels.shape[2]), within(pixels.shape[3])
    square = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
    return torch.where(chosen & square, 0.5, pixels)
