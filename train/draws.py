"""The random numbers of a run: each depends on its place in the run, not on what was drawn before."""

import torch

from nula.train.recipe import Recipe


def mixed(seed: int, *parts: int) -> int:
    """Return one generator seed for each (seed, parts)."""
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return seed


def run_seed(recipe: Recipe, seed: int) -> int:
    """Return the seed of a run's batches, augmentation and dropout, which differs between recipes.

    With the same seed, v1 would go through v0's first batches again.
    """
    return mixed(seed, *recipe.name.encode())


def batch_indices(count: int, epoch: int, recipe: Recipe, seed: int) -> torch.Tensor:
    """Draw a permutation of `count` images for this epoch: (steps, batch_size), without the incomplete last batch."""
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    steps = count // recipe.batch_size
    return torch.randperm(count, generator=generator)[: steps * recipe.batch_size].view(steps, recipe.batch_size)
