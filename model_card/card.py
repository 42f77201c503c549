"""The model cards, and the tables of the project's README, from committed result files alone.

python -m nula.model_card.card rewrites releases/v0.md and releases/v1.md, and what stands between the markers in
README.md.
"""

import argparse
import json
import shlex
from importlib.metadata import version as package_version
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from scipy.special import softmax

from nula.configuration_nula import CIFAR10_LABELS
from nula.data import CIFAR10, CIFAR10_FINGERPRINTS
from nula.evaluation.claims import Finding, findings
from nula.evaluation.null_space import STEPS
from nula.model_card.limits import limits
from nula.model_card.tables import (
    VERSIONS,
    attacks_table,
    calibration_table,
    compatibility_table,
    corruptions_table,
    definitions_table,
    results_table,
    seeds_table,
    stored_tables,
    training_folders,
)
from nula.perturbations.corruptions import SEVERITIES
from nula.records.provenance import speed_of, training_command, without_options
from nula.records.statistics import BINS
from nula.records.table import Table

WIDGET_CLASSES = 3  # examples in the widget, each of another class

PICTURES = {  # of releases/figures, as nula.model_card.figures draws them, with what each shows
    "table": "Accuracy under every perturbation, with 95 % intervals",
    "noise_histogram": "Accuracy over realisations of Gaussian noise, σ = 0.05",
    "noise_sweep": "Accuracy against the strength of Gaussian noise, with 95 % intervals",
    "running_gap": "v1 − v0 under noise over the first k test images, a line for each realisation",
    "sensitivity": "Norm of the Jacobian of the logits with respect to the pixels, under noise",
    "curvature": "Both ends of the Hessian's spectrum, under noise",
    "certified": "Accuracy of the smoothed classifier that is certified up to an L2 radius, by strength of its noise",
    "path": "Accuracy on the straight line through the weights of v0 and v1",
    "confusion": "What each class is called under noise, σ = 0.05",
    "perturbations": "One test image under every perturbation",
    "flipped": "Test images to which v0 and v1 give different answers",
}


def pictures(releases: Path) -> dict[str, str]:
    """The pictures that were drawn for `releases`, by name, with their captions."""
    return {name: caption for name, caption in PICTURES.items() if (releases / "figures" / f"{name}.png").is_file()}


def widget_images(version: str, releases: Path) -> dict[str, int]:
    """Path in the repository to index among the images of golden.npz: the first of each of three classes."""
    results = releases / version / "results"
    with np.load(results / "golden.npz") as golden:
        labels = Table.load(results).labels[: len(golden["images"])]
    classes, first = np.unique(labels, return_index=True)
    return {
        f"examples/{CIFAR10_LABELS[classes[place]]}.png": int(first[place])
        for place in np.argsort(first)[:WIDGET_CLASSES]
    }


def widget(version: str, releases: Path) -> list[dict]:
    """The examples of the Hub's widget, with the three best scores that were measured for each."""
    with np.load(releases / version / "results" / "golden.npz") as golden:
        scores = softmax(golden["logits"].astype(float), axis=1)
    examples = []
    for path, index in widget_images(version, releases).items():
        best = np.argsort(-scores[index])[:3]
        output = [{"label": CIFAR10_LABELS[label], "score": round(float(scores[index][label]), 4)} for label in best]
        examples.append({"src": path, "example_title": Path(path).stem, "output": output})
    return examples


def repository_name(version: str) -> str:
    return f"nula-cifar10-robust-{version}"


def training_speed(training: dict) -> str:
    """How many epochs ran where, and how fast.

    Such as "10 epochs on 2 threads of <processor> (<n> images/s, <p> % of what a matrix product in bfloat16 reached)".
    """
    hardware, parts = training["hardware"], []
    processes = hardware["processes"]
    units = (
        f"{processes * hardware['threads_per_process']} threads of" if hardware["device"] == "cpu" else f"{processes} ×"
    )
    for (machine, dtype), group in groupby(training["epochs"], lambda epoch: (epoch["machine"], epoch["dtype"])):
        epochs = list(group)
        speed, share = speed_of(epochs, training["flops_per_image"], processes)
        plural = "s" if len(epochs) > 1 else ""
        parts.append(
            f"{len(epochs)} epoch{plural} on {units} {machine} ({speed:.0f} images/s, {100 * share:.0f} % of "
            f"what a matrix product in {dtype} reached)"
        )
    return " and ".join(parts) or "less than an epoch, too short to tell its speed"


def training_times(releases: Path) -> str:
    """Minutes, speed and hardware of both training runs, and of those of other seeds."""
    times = []
    for version in VERSIONS:
        for folder in training_folders(version, releases):
            run = json.loads((folder / "training.json").read_text())
            title = version if folder == releases / version else f"{version} of seed {run['seed']}"
            times.append(f"{title} in {run['seconds'] / 60:.0f} minutes, {training_speed(run)}")
    return f"Trained: {'; '.join(times)}."


def release_tag() -> str:
    """The tag that a release of this version of the package is pushed under."""
    return f"v{package_version('nula')}"


def again(training: dict, base: str) -> str:
    """The command that does a run again, with the Hub's names for what was read from folders."""
    parts = shlex.split(training_command(training))
    values = {"--output_dir": training["recipe"]["name"]} | ({"--v0": base} if base else {})
    for option, value in values.items():
        if option in parts:
            parts[parts.index(option) + 1] = value
    if is_cifar10(training["dataset"]):
        parts = without_options(parts, "--dataset")  # it is the default
    return shlex.join(parts)


def is_cifar10(dataset: dict) -> bool:
    """Whether a record's data set is CIFAR-10, whatever it was read from."""
    return dataset["sha256"] == CIFAR10_FINGERPRINTS[dataset["split"]]


def dataset_title(dataset: dict) -> str:
    return "CIFAR-10" if is_cifar10(dataset) else dataset["name"]


def metadata(version: str, releases: Path, name: str, base: str) -> ModelCardData:
    """The head of the card, by which the Hub files, finds and runs the model."""
    table = stored_tables(releases)[version]
    accuracies, measured_on = table.accuracies(), table.provenance["dataset"]
    fine_tuned = version == "v1" and base != ""
    trained_on = json.loads((releases / version / "training.json").read_text())["dataset"]
    return ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="image-classification",
        datasets=[CIFAR10 if is_cifar10(trained_on) else trained_on["name"]],
        metrics=["accuracy"],
        tags=["robustness", "anti-aliasing", "cifar-10"],
        base_model=base if fine_tuned else None,
        base_model_relation="finetune" if fine_tuned else None,
        widget=widget(version, releases),
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=CIFAR10 if is_cifar10(measured_on) else measured_on["name"],
                dataset_name=dataset_title(measured_on),
                dataset_split=measured_on["split"],
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(accuracy, 2),
            )
            for name, accuracy in accuracies.items()
        ],
    )


def render_card(
    version: str, releases: Path, hub_id: str | None = None, base: str | None = None, revision: str | None = None
) -> str:
    """README.md of the Hub repository `hub_id` of `version`, by default the project's own.

    `base` is the Hub id of the weights that v1 was fine-tuned from, by default v0 of the same owner; "" where they
    are on no Hub. `revision` is the tag that its example pins, if there is one. How the settings of a run came about is
    told in `releases`/vN/notes.md, if that is there.
    """
    training = json.loads((releases / version / "training.json").read_text())
    notes = releases / version / "notes.md"
    hub_id = hub_id or f"MamaPearl/{repository_name(version)}"
    table = stored_tables(releases)[version]
    owner, _, name = hub_id.partition("/")
    base = f"{owner}/{repository_name('v0')}" if base is None else base
    card = ModelCard.from_template(
        metadata(version, releases, name, base),
        template_str=files("nula.model_card").joinpath("template.md").read_text(encoding="utf-8"),
        name=name,
        hub_id=hub_id,
        revision=revision or "main",
        version=version,
        test_images=len(table.labels),
        measured_on=dataset_title(table.provenance["dataset"]),
        processor=json.loads((releases / version / "preprocessor_config.json").read_text()),
        training=training,
        speed=training_speed(training),
        command=again(training, base),
        notes=notes.read_text(encoding="utf-8").strip() if notes.is_file() else "",
        results=results_table(releases),
        seeds=seeds_table(version, releases),
        corruptions=corruptions_table(releases),
        severities=len(SEVERITIES),
        attacks=attacks_table(releases),
        attack_steps=STEPS,
        calibration=calibration_table(releases),
        bins=BINS,
        claims=claims(releases),
        definitions=definitions_table(),
        limits=limits(version, releases),
        pictures=pictures(releases),
    )
    return f"{card.content}\n"


def claims(releases: Path) -> list[Finding]:
    """What the results say of the claims of the published cards; nothing where only one version was measured."""
    if len(stored_tables(releases)) < len(VERSIONS):
        return []
    return findings(*(releases / version / "results" for version in VERSIONS))


def with_tables(readme: str, releases: Path) -> str:
    """`readme` with what stands between its markers replaced: results and training times, definitions, and
    compatibility.

    Raises:
        ValueError: a marker is not there just once.
    """
    derived = {
        "results": f"{results_table(releases)}\n\n{training_times(releases)}",
        "definitions": definitions_table(),
        "compatibility": compatibility_table(releases),
    }
    for name, text in derived.items():
        begin, end = f"<!-- {name}: begin (python -m nula.model_card.card) -->", f"<!-- {name}: end -->"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise ValueError(f"README must hold the markers {begin!r} and {end!r} once each.")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    return readme


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewrite the cards and the tables of the README from result files.")
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    arguments = parser.parse_args()
    for version in VERSIONS:
        (arguments.releases / f"{version}.md").write_text(
            render_card(version, arguments.releases, revision=release_tag()), encoding="utf-8"
        )
    arguments.readme.write_text(
        with_tables(arguments.readme.read_text(encoding="utf-8"), arguments.releases), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
