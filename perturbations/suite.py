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
class Perturbation:
    """What one row of the table does to pixels (B, 3, H, W) in [0, 1] of any size.

    `apply(pixels, generator)` is pure; only the noise row draws from the generator.
    """

    name: str
    definition: str
    apply: Callable[[torch.Tensor, torch.Generator], torch.Tensor]


CHECKERBOARD = "add {}·(−1)^(i+j+1) in row i and column j, the same on all channels"

ROWS: tuple[Perturbation, ...] = (
    Perturbation("Clean (CIFAR-10 Test)", "the image as it is", lambda x, g: x),
    Perturbation("Resize (0.5 Scale)", "bilinear to 16×16 and back", lambda x, g: resize(x, 0.5, "bilinear")),
    Perturbation("Resize x0.25 - Bilinear", "bilinear to 8×8 and back", lambda x, g: resize(x, 0.25, "bilinear")),
    Perturbation("Resize x0.5 - Bicubic", "bicubic to 16×16 and back", lambda x, g: resize(x, 0.5, "bicubic")),
    Perturbation("Resize x0.25 - Bicubic", "bicubic to 8×8 and back", lambda x, g: resize(x, 0.25, "bicubic")),
    Perturbation("Resize x0.5 - Nearest", "nearest to 16×16 and back", lambda x, g: resize(x, 0.5, "nearest")),
    Perturbation(
        "Decimate (x2 Factor)",
        "keep even rows and columns unsmoothed, repeat each pixel 2×2; the same map as nearest ×0.5",
        lambda x, g: decimate(x, 2),
    ),
    Perturbation("Checkerboard ε = 0.03", CHECKERBOARD.format("0.03"), lambda x, g: checkerboard(x, 0.03)),
    Perturbation("Checkerboard ε = 0.05", CHECKERBOARD.format("0.05"), lambda x, g: checkerboard(x, 0.05)),
    Perturbation(
        "Resize x0.5 + Decimate x2",
        "bilinear to 16×16 and back, then decimate",
        lambda x, g: decimate(resize(x, 0.5, "bilinear"), 2),
    ),
    Perturbation(
        "Decimate x2 + Resize x0.25",
        "decimate, then bilinear to 8×8 and back",
        lambda x, g: resize(decimate(x, 2), 0.25, "bilinear"),
    ),
    Perturbation(
        "Resize x0.5 + Checkerboard x0.03",
        "bilinear to 16×16 and back, then checkerboard ε = 0.03",
        lambda x, g: checkerboard(resize(x, 0.5, "bilinear"), 0.03),
    ),
    Perturbation("Shift X (1-pixel)", "one pixel to the right, circular", lambda x, g: shift(x, right=1)),
    Perturbation("Shift Y (1-pixel)", "one pixel down, circular", lambda x, g: shift(x, down=1)),
    Perturbation(
        "Shift XY (Diagonal 1-pixel)", "one pixel right and down, circular", lambda x, g: shift(x, down=1, right=1)
    ),
    Perturbation("Brightness (+0.10)", "x + 0.10", lambda x, g: brightness(x, 0.10)),
    Perturbation("Contrast (0.80)", "0.8·x + 0.2·mean luma of the image", lambda x, g: contrast(x, 0.80)),
    Perturbation("Grayscale (Full Mix)", "luma 0.299 R + 0.587 G + 0.114 B on all channels", lambda x, g: grayscale(x)),
    Perturbation(
        "Gaussian Blur (k=5, σ=1.0)",
        "normalised 5×5 Gaussian, σ = 1 pixel, reflected border",
        lambda x, g: gaussian_blur(x, 5, 1.0),
    ),
    Perturbation(
        "Gaussian Noise σ = 0.05",
        "add N(0, 0.05²) to each pixel and channel, seeded",
        lambda x, g: gaussian_noise(x, 0.05, g),
    ),
)
