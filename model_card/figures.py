"""The pictures of the model card, from committed result files and the test images they are about.

python -m nula.model_card.figures --dataset uoft-cs/cifar10 rewrites releases/figures/*.png.
"""

import argparse
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from nula.configuration_nula import CIFAR10_LABELS
from nula.data import CIFAR10, Split, load_split
from nula.evaluation.monte_carlo import correct_draws, gap
from nula.evaluation.studies import ALPHAS, INTERPOLATED, MEASURED_ANEW, PATH_CONDITIONS, path_row
from nula.perturbations.suite import ROWS
from nula.publishing.hub import WEIGHTS, drawn_from
from nula.records.statistics import confusion_matrix, flips, mean_interval, wilson_interval
from nula.records.table import Table

WIDTH = 8.0  # inches; a model card shows about 800 pixels
COLORS = {"v0": "#E69F00", "v1": "#0072B2"}  # of M. Okabe and K. Ito's palette, told apart by every kind of eye
NOISE_ROW = "Gaussian Noise σ = 0.05"

matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})

Results = dict[str, Path]  # "v0" and "v1" to their folders of results


def noise_histogram(results: Results) -> Figure:
    """Accuracy over realisations of the noise, one entry each."""
    figure, axes = _figure(3.2)
    draws = {name: 100 * correct_draws(Table.load(folder / "noise")).mean(axis=1) for name, folder in results.items()}
    bins = np.arange(np.concatenate([*draws.values()]).min() - 0.1, np.concatenate([*draws.values()]).max() + 0.2, 0.1)
    for name, values in draws.items():
        axes.hist(values, bins, color=COLORS[name], label=f"{name}: {values.mean():.2f} ± {values.std(ddof=1):.2f} %")
    axes.set(xlabel="accuracy in percent under Gaussian noise, σ = 0.05", ylabel="realisations")
    axes.legend(frameon=False)
    return figure


def noise_sweep(results: Results) -> Figure:
    """Accuracy under one realisation of each strength of the noise, with Wilson's 95 % intervals."""
    figure, axes = _figure(3.2)
    for name, folder in results.items():
        stored = Table.load(folder / "noise")
        counts = {
            float(row.rpartition(" ")[2]): int((predictions == stored.labels).sum())
            for row, seed, predictions in zip(stored.rows, stored.seeds, stored.predictions)
            if seed == 0
        }
        sigmas, total = sorted(counts), len(stored.labels)
        middle = np.array([100 * counts[sigma] / total for sigma in sigmas])
        low, high = 100 * np.array([wilson_interval(counts[sigma], total) for sigma in sigmas]).T
        axes.errorbar(
            sigmas, middle, (middle - low, high - middle), color=COLORS[name], marker="o", capsize=4, label=name
        )
    axes.set(xlabel="σ of the noise", ylabel="accuracy in percent")
    axes.legend(frameon=False)
    return figure


def running_gap(results: Results) -> Figure:
    """v1 − v0 over the first k images, a line for each realisation."""
    figure, axes = _figure(3.2)
    result = gap(*(correct_draws(Table.load(results[name] / "noise")) for name in ("v0", "v1")))
    axes.plot(
        np.arange(1, result.running.shape[1] + 1), result.running.T, color=COLORS["v1"], alpha=0.25, linewidth=0.7
    )
    axes.axhline(result.mean, color="black", linewidth=1, label=f"mean over all images: {result.mean:+.2f} points")
    axes.set(xlabel="first k test images", ylabel="v1 − v0 in points", xscale="log", xlim=(50, result.running.shape[1]))
    settled = result.running[:, 50:]
    axes.set_ylim(settled.min() - 0.5, settled.max() + 0.5)
    axes.legend(frameon=False)
    return figure


def sensitivity(results: Results) -> Figure:
    """Norm of the Jacobian against the strength of the noise: median and quartiles over images."""
    figure, axes = _figure(3.2)
    for aside, (name, folder) in zip((-5e-4, 5e-4), results.items()):  # so that no bar hides another
        norms = json.loads((folder / "sensitivity.json").read_text())["norms"]
        sigmas = [float(sigma) + aside for sigma in norms]
        low, middle, high = (np.array([np.quantile(norms[sigma], q) for sigma in norms]) for q in (0.25, 0.5, 0.75))
        axes.errorbar(
            sigmas, middle, (middle - low, high - middle), color=COLORS[name], marker="o", capsize=4, label=name
        )
    axes.set(xlabel="σ of the noise", ylabel="‖∂ logits / ∂ pixels‖", ylim=(0, None))
    axes.legend(frameon=False, title="median and quartiles of images")
    return figure


def curvature(results: Results) -> Figure:
    """Both ends of the Hessian's spectrum against the strength of the noise, with 95 % intervals over subsets."""
    figure, axes = _figure(3.2)
    for name, folder in results.items():
        eigenvalues = json.loads((folder / "curvature.json").read_text())["eigenvalues"]
        sigmas = [float(sigma) for sigma in eigenvalues]
        for end, style in (("largest", "-"), ("smallest", ":")):
            means = [mean_interval([part["lanczos"][end] for part in parts]) for parts in eigenvalues.values()]
            middle, low, high = np.array(means).T
            axes.errorbar(
                sigmas, middle, (middle - low, high - middle), color=COLORS[name], marker="o", capsize=4,
                linestyle=style, label=f"{name}, {end}",
            )  # fmt: skip
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="σ of the noise", ylabel="Hessian eigenvalue")
    axes.legend(frameon=False)
    return figure


def path(results: Results) -> Figure:
    """Accuracy on the straight line through both models' weights."""
    figure, axes = _figure(4.4)
    stored = Table.load(results["v1"] / "basin")
    accuracies = stored.accuracies()
    for condition, color, marker in zip(PATH_CONDITIONS, ("#000000", "#0072B2", "#D55E00"), "os^"):
        for statistics, style in ((INTERPOLATED, "-"), (MEASURED_ANEW, ":")):
            values = [accuracies[path_row(condition, statistics, alpha)] for alpha in ALPHAS]
            label = f"{condition}, statistics {statistics}"
            axes.plot(ALPHAS, values, color=color, marker=marker, linestyle=style, label=label)
    for alpha, name in ((0, "v0"), (1, "v1")):
        axes.axvline(alpha, color="gray", linewidth=0.8)
        axes.annotate(name, (alpha, axes.get_ylim()[1]), ha="center", va="bottom")
    total = len(stored.labels)
    axes.set(xlabel="α in θ(v0) + α (θ(v1) − θ(v0))", ylabel=f"accuracy in percent on {total:,} images")
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside lower center", title="statistics of BatchNorm")
    return figure


def certified(results: Results) -> Figure:
    """Share of the images that are answered right with at least the radius, for each strength of the noise."""
    figure, axes = _figure(3.6)
    for name, folder in results.items():
        record = json.loads((folder / "certified.json").read_text())
        for (sigma, found), style in zip(record["certificates"].items(), ("-", "--", ":")):
            right = [label == truth for label, truth in zip(found["labels"], record["truth"])]
            radii = np.sort(np.array(found["radii"])[right])
            shares = 100 * np.arange(len(radii), -1, -1) / len(right)
            axes.step(
                [0, *radii], shares, where="post", color=COLORS[name], linestyle=style, label=f"{name}, σ = {sigma}"
            )
    axes.set(xlabel=f"L2 radius, pixel values in [0, 1], {len(right)} images", ylabel="certified accuracy in percent")
    axes.set(xlim=(0, None), ylim=(0, 100))
    axes.legend(frameon=False)
    return figure


def table(results: Results) -> Figure:
    """The twenty rows with Wilson's 95 % intervals."""
    figure, axes = _figure(6.5)
    for offset, (name, folder) in zip((0.15, -0.15), results.items()):
        stored = Table.load(folder)
        correct, total = (stored.predictions == stored.labels).sum(axis=1), len(stored.labels)
        intervals = 100 * np.array([wilson_interval(int(count), total) for count in correct])
        middle, places = 100 * correct / total, np.arange(len(stored.rows))[::-1] + offset
        errors = (middle - intervals[:, 0], intervals[:, 1] - middle)
        axes.errorbar(middle, places, xerr=errors, color=COLORS[name], fmt="o", markersize=4, capsize=2, label=name)
    axes.set_yticks(np.arange(len(stored.rows))[::-1], stored.rows)
    axes.grid(axis="y", linewidth=0.4)
    axes.set(xlabel=f"accuracy in percent on {total:,} test images, 95 % intervals")
    axes.legend(loc="upper left", framealpha=1, edgecolor="none")
    return figure


def confusion(results: Results) -> Figure:
    """What each class is called under noise, by both models."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    for axes, (name, folder) in zip(figure.subplots(1, 2), results.items()):
        stored = Table.load(folder)
        matrix = confusion_matrix(stored.labels, stored.predictions[stored.rows.index(NOISE_ROW)])
        shares = 100 * matrix / matrix.sum(axis=1, keepdims=True)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                color = "white" if share > 50 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(10), CIFAR10_LABELS, rotation=90, fontsize=8)
        axes.set_yticks(range(10), CIFAR10_LABELS, fontsize=8)
        axes.set(title=f"{name}, noise σ = 0.05", xlabel="answer in percent", ylabel="class")
        axes.spines[:].set_visible(False)
    return figure


def perturbations(data: Split, index: int = 0) -> Figure:
    """One test image under every row of the table."""
    figure = Figure(figsize=(WIDTH, 7.4), layout="constrained")
    pixels = data.images[index : index + 1].permute(0, 3, 1, 2).float() / 255
    for axes, row in zip(figure.subplots(4, 5).flat, ROWS):
        _show(axes, row.apply(pixels, torch.Generator().manual_seed(0))[0], textwrap.fill(row.name, 22))
    return figure


def flipped(results: Results, data: Split, count: int = 12) -> Figure:
    """The first images whose clean answer differs between the models, with both answers.

    ValueError where `data` are not the images that were measured.
    """
    stored = {name: Table.load(folder) for name, folder in results.items()}
    for name, table in stored.items():
        if table.provenance["dataset"]["sha256"] != data.fingerprint:
            raise ValueError(f"the results of {name} are of other images; give the --dataset they were measured on.")
    v0, v1 = (table.predictions[0] for table in stored.values())
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    chosen = flips(v0, v1)[:count]
    for axes, index in zip(figure.subplots(3, 4).flat, chosen):
        names = [CIFAR10_LABELS[answer] for answer in (data.labels[index], v0[index], v1[index])]
        _show(axes, data.images[index].permute(2, 0, 1).float() / 255, "{}\nv0: {}, v1: {}".format(*names))
    return figure


def _figure(height: float) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _show(axes: matplotlib.axes.Axes, pixels: torch.Tensor, title: str) -> None:
    axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


FROM_RESULTS: dict[str, Callable[[Results], Figure]] = {
    function.__name__: function
    for function in (
        table,
        noise_histogram,
        noise_sweep,
        running_gap,
        sensitivity,
        curvature,
        certified,
        path,
        confusion,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.model_card.figures", description="Draw the card's pictures.")
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--dataset", default=CIFAR10, help="Hub id, or a folder of the same layout")
    arguments = parser.parse_args()
    results = {version: arguments.releases / version / "results" for version in ("v0", "v1")}
    data = load_split(arguments.dataset, "test")
    folder = arguments.releases / "figures"
    folder.mkdir(exist_ok=True)
    weights = drawn_from(arguments.releases)
    figures = {"perturbations": perturbations(data)}
    for name, draw in {**FROM_RESULTS, "flipped": lambda results: flipped(results, data)}.items():
        try:
            figures[name] = draw(results)
        except FileNotFoundError as error:
            print(f"no {name}: {error.filename} was not measured")
            (folder / f"{name}.png").unlink(missing_ok=True)  # one of other weights
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None, WEIGHTS: weights})
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
