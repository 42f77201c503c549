"""The twenty rows of the evaluation table, by name.

The names are those of the published table (model cards of MamaPearl/nula-cifar10-robust-v0 and -v1), which does not
define them; the definitions below are this project's reading. DEFINITIONS_VERSION changes whenever a number could.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nula.perturbations.appearance import brightness, contrast, gaussian_blur, gaussian_noise, grayscale, shift
from nula.perturbations.sampling import checkerboard, decimate, resize

DEFINITIONS_VERSION = 2


@dataclass(frozen=True)
class Row:
    """One row of the table. `apply(pixels, generator)` is pure; only the noise row draws from the generator."""

    category: str
    name: str
    apply: Callable[[torch.Tensor, torch.Generator], torch.Tensor]


ROWS: tuple[Row, ...] = (
    Row("Baseline", "Clean (CIFAR-10 Test)", lambda x, g: x),
    Row("Resolution", "Resize (0.5 Scale)", lambda x, g: resize(x, 0.5, "bilinear")),
    Row("Resolution", "Resize x0.25 - Bilinear", lambda x, g: resize(x, 0.25, "bilinear")),
    Row("Resolution", "Resize x0.5 - Bicubic", lambda x, g: resize(x, 0.5, "bicubic")),
    Row("Resolution", "Resize x0.25 - Bicubic", lambda x, g: resize(x, 0.25, "bicubic")),
    Row("Resolution", "Resize x0.5 - Nearest", lambda x, g: resize(x, 0.5, "nearest")),
    Row("Sampling", "Decimate (x2 Factor)", lambda x, g: decimate(x, 2)),
    Row("Sampling", "Checkerboard ε = 0.03", lambda x, g: checkerboard(x, 0.03)),
    Row("Sampling", "Checkerboard ε = 0.05", lambda x, g: checkerboard(x, 0.05)),
    Row("Compositional", "Resize x0.5 + Decimate x2", lambda x, g: decimate(resize(x, 0.5, "bilinear"), 2)),
    Row("Compositional", "Decimate x2 + Resize x0.25", lambda x, g: resize(decimate(x, 2), 0.25, "bilinear")),
    Row(
        "Compositional", "Resize x0.5 + Checkerboard x0.03", lambda x, g: checkerboard(resize(x, 0.5, "bilinear"), 0.03)
    ),
    Row("Spatial", "Shift X (1-pixel)", lambda x, g: shift(x, right=1)),
    Row("Spatial", "Shift Y (1-pixel)", lambda x, g: shift(x, down=1)),
    Row("Spatial", "Shift XY (Diagonal 1-pixel)", lambda x, g: shift(x, down=1, right=1)),
    Row("Photometric", "Brightness (+0.10)", lambda x, g: brightness(x, 0.10)),
    Row("Photometric", "Contrast (0.80)", lambda x, g: contrast(x, 0.80)),
    Row("Photometric", "Grayscale (Full Mix)", lambda x, g: grayscale(x)),
    Row("Noise/Blur", "Gaussian Blur (k=5, σ=1.0)", lambda x, g: gaussian_blur(x, 5, 1.0)),
    Row("Noise/Blur", "Gaussian Noise σ = 0.05", lambda x, g: gaussian_noise(x, 0.05, g)),
)
