"""Images of a split as one tensor of pixels, under an operator, and a model's answers to them."""

import numpy as np
import torch

from nula.data import Split, to_pixels
from nula.evaluation.classifiers import AT_DATA, PixelClassifier
from nula.evaluation.measuring import Operator, class_indices, joined
from nula.perturbations.appearance import gaussian_noise


def pixels_of(data: Split, classifier: PixelClassifier, device: torch.device) -> tuple[torch.Tensor, PixelClassifier]:
    """Return the images as pixels (N, 3, H, W) in [0, 1], and the classifier of pixels of that size.

    It is the size at which images are perturbed: their own or, with `perturb_at` "model" and where sizes differ, the
    model's, to which the classifier then does not resize them again.

    Raises:
        ValueError: sizes differ, and the model brings the images to none.
    """
    if isinstance(data.images, torch.Tensor):
        pixels = to_pixels(data.images.to(device))
        return (pixels, classifier) if classifier.perturb_at == AT_DATA else _resized([pixels], classifier)
    return _resized([to_pixels(image.unsqueeze(0).to(device)) for image in data.images], classifier)


def _resized(parts: list[torch.Tensor], classifier: PixelClassifier) -> tuple[torch.Tensor, PixelClassifier]:
    return joined([classifier.resized(part) for part in parts]), classifier.after_resize()


def perturbed(pixels: torch.Tensor, operator: Operator) -> torch.Tensor:
    """Apply `operator` with the generator of seed 0, on the CPU, so that noise is the same for any device."""
    return operator(pixels.cpu(), torch.Generator().manual_seed(0)).to(pixels.device)


def noisy(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Add Gaussian noise of standard deviation `sigma`, in pixel values of [0, 1]."""
    return perturbed(pixels, lambda clean, generator: gaussian_noise(clean, sigma, generator))


@torch.inference_mode()
def answers(classifier: torch.nn.Module, pixels: torch.Tensor, batch_size: int = 500) -> np.ndarray:
    """Return the class (N,) that the classifier gives each image."""
    logits = torch.cat([classifier(part) for part in pixels.split(batch_size)])
    return class_indices(logits.argmax(1).cpu(), logits.shape[1])
