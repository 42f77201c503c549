"""The pictures of the model cards, from the results of the releases and the test images they are about.

`nula figures --dataset uoft-cs/cifar10` rewrites releases/figures/*.png. To add a picture, write the function that
draws it and its entry in PICTURES.
"""

import argparse
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nula.data import DataSource, Split, add_data_arguments, to_pixels
from nula.evaluation.monte_carlo import gap
from nula.evaluation.studies.basin import ALPHAS, INTERPOLATED, MEASURED_ANEW, PATH_CONDITIONS, path_row
from nula.model_card.drawing import bars, gallery, intervals, plot, sheet, side_by_side
from nula.model_card.tables import compared_pair, compared_tables, measured, records
from nula.perturbations.suite import ROWS
from nula.records.cifar10 import is_cifar10
from nula.records.release import PNG_KEY, Releases, drawn_from, load_releases
from nula.records.statistics import confusion_matrix, flips, mean_interval
from nula.records.table import CLEAN, row_title

if TYPE_CHECKING:  # cards name the pictures, and do without matplotlib
    from matplotlib.figure import Figure

NOISE_ROW = "Gaussian Noise σ = 0.05"
CONDITION_COLORS = ("#000000", "#0072B2", "#D55E00")  # of M. Okabe and K. Ito's palette


@dataclass(frozen=True)
class Picture:
    """One picture of the cards.

    Args:
        name: of its file, without .png.
        caption: what it shows; {base} and {tuned} stand for the names of the two releases that are compared.
        draw: draws it of the releases and the test images; gives None where nothing that it shows was measured.
    """

    name: str
    caption: str
    draw: Callable[[Releases, Split], "Figure | None"]


def table(releases: Releases, data: Split) -> "Figure | None":
    """Draw the twenty rows with Wilson's 95 % intervals."""
    tables = measured(releases)
    if not tables:
        return None
    figure, axes = plot(6.5)
    offsets = side_by_side(len(tables), apart=-0.3, within=0.8)
    rows = next(iter(tables.values())).rows
    for offset, (name, stored) in zip(offsets, tables.items()):
        places = np.arange(len(rows))[::-1] + offset
        low, middle, high = intervals([stored.row(row) for row in rows])
        style = {"color": releases[name].color, "fmt": "o", "markersize": 4, "capsize": 2}
        axes.errorbar(middle, places, xerr=(middle - low, high - middle), label=name, **style)
    axes.set_yticks(np.arange(len(rows))[::-1], [row_title(row, stored.of_cifar10) for row in rows])
    axes.grid(axis="y", linewidth=0.4)
    axes.set(xlabel=f"accuracy in percent on {len(stored.labels):,} test images, 95 % intervals")
    axes.legend(loc="upper left", framealpha=1, edgecolor="none")
    return figure


def noise_histogram(releases: Releases, data: Split) -> "Figure | None":
    """Draw the accuracy over realisations of the noise, one entry each."""
    tables = measured(releases, "noise")
    if not tables:
        return None
    figure, axes = plot(3.2)
    draws = {
        name: np.array([row.accuracy for row in stored.realisations(NOISE_ROW)]) for name, stored in tables.items()
    }
    bins = np.arange(np.concatenate([*draws.values()]).min() - 0.1, np.concatenate([*draws.values()]).max() + 0.2, 0.1)
    for name, values in draws.items():
        label = f"{name}: {values.mean():.2f} ± {values.std(ddof=1):.2f} %"
        axes.hist(values, bins, color=releases[name].color, label=label)
    axes.set(xlabel="accuracy in percent under Gaussian noise, σ = 0.05", ylabel="realisations")
    axes.legend(frameon=False)
    return figure


def noise_sweep(releases: Releases, data: Split) -> "Figure | None":
    """Draw the accuracy under one realisation of each strength of the noise, with Wilson's 95 % intervals."""
    tables = measured(releases, "noise")
    if not tables:
        return None
    figure, axes = plot(3.2)
    for name, stored in tables.items():
        first = {float(row.name.rpartition(" ")[2]): row for row in stored if row.seed == 0}
        sigmas = sorted(first)
        bars(axes, sigmas, intervals([first[sigma] for sigma in sigmas]), releases[name], label=name)
    axes.set(xlabel="σ of the noise", ylabel="accuracy in percent")
    axes.legend(frameon=False)
    return figure


def running_gap(releases: Releases, data: Split) -> "Figure | None":
    """Draw the change from base to fine-tuned over the first k images, a line for each realisation."""
    found = compared_tables(releases, "noise")
    if found is None:
        return None
    (base, of_base), (tuned, of_tuned) = found
    figure, axes = plot(3.2)
    result = gap(*(np.stack([row.right for row in t.realisations(NOISE_ROW)]) for t in (of_base, of_tuned)))
    images = result.running.shape[1]
    axes.plot(np.arange(1, images + 1), result.running.T, color=tuned.color, alpha=0.25, linewidth=0.7)
    axes.axhline(result.mean, color="black", linewidth=1, label=f"mean over all images: {result.mean:+.2f} points")
    skipped = min(50, images // 2)  # where single images still move the gap far
    axes.set(xlabel="first k test images", ylabel=f"{tuned.name} − {base.name} in points")
    axes.set(xscale="log", xlim=(skipped, images))
    settled = result.running[:, skipped:]
    axes.set_ylim(settled.min() - 0.5, settled.max() + 0.5)
    axes.legend(frameon=False)
    return figure


def sensitivity(releases: Releases, data: Split) -> "Figure | None":
    """Draw the norm of the Jacobian against the strength of the noise: median and quartiles over images."""
    found = records(releases, "sensitivity")
    if not found:
        return None
    figure, axes = plot(3.2)
    for aside, (name, record) in zip(side_by_side(len(found), apart=1e-3, within=1e-2), found.items()):
        norms = record["norms"]
        sigmas = [float(sigma) + aside for sigma in norms]  # so that no bar hides another
        low, middle, high = (np.array([np.quantile(norms[sigma], q) for sigma in norms]) for q in (0.25, 0.5, 0.75))
        bars(axes, sigmas, (low, middle, high), releases[name], label=name)
    axes.set(xlabel="σ of the noise", ylabel="‖∂ logits / ∂ pixels‖", ylim=(0, None))
    axes.legend(frameon=False, title="median and quartiles of images")
    return figure


def curvature(releases: Releases, data: Split) -> "Figure | None":
    """Draw both ends of the Hessian's spectrum against the strength of the noise, with 95 % intervals over subsets."""
    found = records(releases, "curvature")
    if not found:
        return None
    figure, axes = plot(3.2)
    for name, record in found.items():
        eigenvalues = record["eigenvalues"]
        sigmas = [float(sigma) for sigma in eigenvalues]
        for end, style in (("largest", "-"), ("smallest", ":")):
            means = [mean_interval([part["lanczos"][end] for part in parts]) for parts in eigenvalues.values()]
            middle, low, high = np.array(means).T
            bars(axes, sigmas, (low, middle, high), releases[name], label=f"{name}, {end}", linestyle=style)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="σ of the noise", ylabel="Hessian eigenvalue")
    axes.legend(frameon=False)
    return figure


def certified(releases: Releases, data: Split) -> "Figure | None":
    """Draw the share of images that are answered right with at least the radius, for each strength of the noise."""
    found = records(releases, "certified")
    if not found:
        return None
    figure, axes = plot(3.6)
    for name, record in found.items():
        for (sigma, certificates), style in zip(record["certificates"].items(), ("-", "--", ":")):
            right = [label == truth for label, truth in zip(certificates["labels"], record["truth"])]
            radii = np.sort(np.array(certificates["radii"])[right])
            shares = 100 * np.arange(len(radii), -1, -1) / len(right)
            line = {"color": releases[name].color, "linestyle": style, "label": f"{name}, σ = {sigma}"}
            axes.step([0, *radii], shares, where="post", **line)
    axes.set(xlabel=f"L2 radius, pixel values in [0, 1], {len(right)} images", ylabel="certified accuracy in percent")
    axes.set(xlim=(0, None), ylim=(0, 100))
    axes.legend(frameon=False)
    return figure


def path(releases: Releases, data: Split) -> "Figure | None":
    """Draw the accuracy on the straight line through both releases' weights."""
    pair = compared_pair(releases)
    stored = pair and pair[1].results.table("basin")
    if not pair or not stored:
        return None
    base, tuned = pair
    figure, axes = plot(4.4)
    for condition, color, marker in zip(PATH_CONDITIONS, CONDITION_COLORS, "os^"):
        for statistics, style in ((INTERPOLATED, "-"), (MEASURED_ANEW, ":")):
            values = [stored.row(path_row(condition, statistics, alpha)).accuracy for alpha in ALPHAS]
            label = f"{condition}, statistics {statistics}"
            axes.plot(ALPHAS, values, color=color, marker=marker, linestyle=style, label=label)
    for alpha, release in ((0, base), (1, tuned)):
        axes.axvline(alpha, color="gray", linewidth=0.8)
        axes.annotate(release.name, (alpha, axes.get_ylim()[1]), ha="center", va="bottom")
    line = f"α in θ({base.name}) + α (θ({tuned.name}) − θ({base.name}))"
    axes.set(xlabel=line, ylabel=f"accuracy in percent on {len(stored.labels):,} images")
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside lower center", title="statistics of BatchNorm")
    return figure


def confusion(releases: Releases, data: Split) -> "Figure | None":
    """Draw what each class is called under noise, by each release."""
    tables = measured(releases)
    if not tables:
        return None
    columns = min(2, len(tables))
    lines = -(-len(tables) // columns)
    figure = sheet(4.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for (name, stored), axes in zip(tables.items(), panels):
        row, classes = stored.row(NOISE_ROW), stored.classes
        matrix = confusion_matrix(row.labels, row.predictions, len(classes))
        shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (actual, called), share in np.ndenumerate(shares):
            if share >= 0.5:
                color = "white" if share > 50 else "black"
                axes.text(called, actual, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set(title=f"{name}, noise σ = 0.05", xlabel="answer in percent", ylabel="class")
        axes.spines[:].set_visible(False)
    for axes in panels:
        axes.remove()
    return figure


def perturbations(releases: Releases, data: Split) -> "Figure":
    """Draw the first test image under every row of the table."""
    pixels = to_pixels(data.images[0].unsqueeze(0))
    cifar10 = is_cifar10({"sha256": data.fingerprint}, "test")
    panels = [
        (row.apply(pixels, torch.Generator().manual_seed(0)), textwrap.fill(row_title(row.name, cifar10), 22))
        for row in ROWS
    ]
    return gallery(panels, columns=5, height=1.85 * math.ceil(len(panels) / 5))


def flipped(releases: Releases, data: Split, count: int = 12) -> "Figure | None":
    """Draw the first images whose clean answer differs between base and fine-tuned, with both answers.

    Raises:
        ValueError: `data` are not the images that were measured.
    """
    found = compared_tables(releases)
    if found is None:
        return None
    for release, stored in found:
        if stored.origin[0] != data.fingerprint:
            raise ValueError(
                f"the results of {release.name} are of other images; give the --dataset they were measured on."
            )
    (base, before), (tuned, after) = ((release, stored.row(CLEAN).predictions) for release, stored in found)
    panels = []
    for index in flips(before, after)[:count]:
        label, first, second = (data.names[answer] for answer in (data.labels[index], before[index], after[index]))
        title = f"{label}\n{base.name}: {first}, {tuned.name}: {second}"
        panels.append((to_pixels(data.images[index].unsqueeze(0)), title))
    return gallery(panels, columns=4, height=5.8)


PICTURES = (
    Picture("table", "Accuracy under every perturbation, with 95 % intervals", table),
    Picture("noise_histogram", "Accuracy over realisations of Gaussian noise, σ = 0.05", noise_histogram),
    Picture("noise_sweep", "Accuracy against the strength of Gaussian noise, with 95 % intervals", noise_sweep),
    Picture(
        "running_gap",
        "{tuned} − {base} under noise over the first k test images, a line for each realisation",
        running_gap,
    ),
    Picture("sensitivity", "Norm of the Jacobian of the logits with respect to the pixels, under noise", sensitivity),
    Picture("curvature", "Both ends of the Hessian's spectrum, under noise", curvature),
    Picture(
        "certified",
        "Accuracy of the smoothed classifier that is certified up to an L2 radius, by strength of its noise",
        certified,
    ),
    Picture("path", "Accuracy on the straight line through the weights of {base} and {tuned}", path),
    Picture("confusion", "What each class is called under noise, σ = 0.05", confusion),
    Picture("perturbations", "One test image under every perturbation", perturbations),
    Picture("flipped", "Test images to which {base} and {tuned} give different answers", flipped),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula figures`."""
    parser.description = "Draw the pictures of the model cards."
    parser.add_argument("--releases", type=Path, default=Path("releases"), help="folder of releases")
    add_data_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Rewrite the pictures of all releases; remove those that nothing was measured for."""
    try:
        releases, data = load_releases(arguments.releases), DataSource.of(arguments).test()
        folder = arguments.releases / "figures"
        folder.mkdir(exist_ok=True)
        for picture in PICTURES:
            figure, file = picture.draw(releases, data), folder / f"{picture.name}.png"
            if figure is None:
                print(f"no {picture.name}: it was not measured")
                file.unlink(missing_ok=True)  # one of other weights
                continue
            figure.savefig(file, dpi=150, metadata={"Software": None, PNG_KEY: drawn_from(releases)})
            print(file)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
