"""Certificates of robustness by randomized smoothing."""

from collections.abc import Callable

import torch

from .configuration_nula import require_fraction, require_integer, require_positive

CONFIDENCE = 0.999  # that a certificate holds; Cohen et al.'s
SELECTION_DRAWS = 100  # of the noise, by which the class is chosen that is then certified; Cohen et al.'s


def certify(
    classify: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    noise_std: float,
    noise_draws: int,
    confidence: float = CONFIDENCE,
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> tuple[int | None, float, float]:
    """Return the smoothed classifier's answer to `image` (3, H, W), its probability's lower bound, and its L2 radius.

    The smoothed classifier g answers with the class that `classify`, from images (B, 3, H, W) to logits (B, classes),
    gives most often for image + N(0, noise_std²). With at least the given confidence over the draws, g answers the
    same to every image whose L2 distance from this one, over all its pixel values, is below the radius; this holds for
    any `classify`. The class is chosen by 100 draws; `noise_draws` others bound its probability p from below (Clopper
    and Pearson, one-sided), and the radius is noise_std · Φ⁻¹(p). Where p is not above 1/2 it abstains: (None, p, 0).
    Algorithm CERTIFY of J. Cohen, E. Rosenfeld and Z. Kolter, "Certified Adversarial Robustness via Randomized
    Smoothing" (ICML 2019).

    Draws are `generator`'s, of the image's device, or torch's own.

    Raises:
        ImportError: scipy is not installed.
        ValueError: no draws, a standard deviation that is not positive, a confidence outside of (0, 1), or logits that
            are not finite.
    """
    require_integer("noise_draws", noise_draws, minimum=1)
    require_positive("noise_std", noise_std)
    require_fraction("confidence", confidence)
    try:
        from scipy.stats import binomtest, norm
    except ImportError:
        raise ImportError("certificates need scipy; pip install scipy.") from None

    def count(draws: int) -> torch.Tensor:
        counts = 0
        for start in range(0, draws, batch_size):
            shape = (min(batch_size, draws - start), *image.shape)
            logits = classify(image + noise_std * torch.randn(shape, generator=generator, device=image.device))
            if not logits.isfinite().all():
                raise ValueError("the model's logits are not finite under this noise; nothing can be certified.")
            counts = counts + torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
        return counts

    label = int(count(SELECTION_DRAWS).argmax())
    votes = int(count(noise_draws)[label])
    test = binomtest(votes, noise_draws, alternative="greater")
    bound = float(test.proportion_ci(confidence, method="exact").low)
    return (label, bound, noise_std * float(norm.ppf(bound))) if bound > 0.5 else (None, bound, 0.0)
