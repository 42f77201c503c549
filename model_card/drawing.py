"""How the pictures of the model cards are drawn: sheets, error bars, galleries of images."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from nula.records.release import Release
from nula.records.table import Row

if TYPE_CHECKING:  # cards name the pictures, and do without matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches; a model card shows about 800 pixels

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # lower ends, middles and upper ends of error bars


def intervals(rows: list[Row]) -> Curve:
    """Return accuracies in percent between their 95 % intervals."""
    low, high = np.array([row.interval() for row in rows]).T
    return low, np.array([row.accuracy for row in rows]), high


def side_by_side(count: int, apart: float, within: float) -> np.ndarray:
    """Return offsets around zero of `count` marks, `apart` from each other and all `within` that range."""
    reach = np.sign(apart) * min(abs(apart) * (count - 1), within) / 2
    return np.linspace(-reach, reach, count)


def bars(axes: "Axes", x: list[float], curve: Curve, release: Release, **style: str) -> None:
    """Draw a curve of a release with error bars, in its colour."""
    low, middle, high = curve
    axes.errorbar(x, middle, (middle - low, high - middle), color=release.color, marker="o", capsize=4, **style)


def sheet(height: float) -> "Figure":
    """Return an empty figure, `height` inches high."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    return Figure(figsize=(WIDTH, height), layout="constrained")


def plot(height: float) -> tuple["Figure", "Axes"]:
    """Return a sheet with one pair of axes."""
    figure = sheet(height)
    return figure, figure.subplots()


def gallery(panels: Sequence[tuple[torch.Tensor, str]], columns: int, height: float) -> "Figure":
    """Draw images, pixels (1, 3, H, W) in [0, 1], each under its title, in at least three lines of so many columns."""
    figure = sheet(height)
    places = figure.subplots(max(3, math.ceil(len(panels) / columns)), columns).flat
    for axes, (pixels, title) in zip(places, panels):
        axes.imshow(pixels[0].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    for axes in places[len(panels) :]:
        axes.remove()
    return figure
