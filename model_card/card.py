"""The model card, and the results table of the project's README, from committed result files alone.

python -m nula.model_card.card rewrites the table between the markers in README.md.
"""

import argparse
import csv
import json
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nula.evaluation.accuracy import Table
from nula.perturbations.suite import ROWS

LAUNCHER_OPTIONS = {  # of accelerate, to what training.json calls them
    "num_processes": "processes",
    "mixed_precision": "mixed_precision",
    "dynamo_backend": "dynamo_backend",
}
BEGIN, END = "<!-- results: begin (python -m nula.model_card.card) -->", "<!-- results: end -->"


def repository_name(version: str) -> str:
    return f"nula-cifar10-robust-{version}"


def published(version: str) -> dict[str, float]:
    """Row name to published accuracy in percent (model cards of MamaPearl/nula-cifar10-robust-v0 and -v1)."""
    with files("nula.model_card").joinpath("published_table.csv").open(encoding="utf-8") as lines:
        return {line["perturbation"]: float(line[f"published_{version}"]) for line in csv.DictReader(lines)}


def results_table(releases: Path) -> str:
    """The twenty rows as markdown: published and measured accuracy of v0 and v1, and the change from v0 to v1."""
    ours = {version: Table.load(releases / version / "results").accuracies() for version in ("v0", "v1")}
    theirs = {version: published(version) for version in ("v0", "v1")}
    lines = [
        "| perturbation | v0 | published v0 | v1 | published v1 | v1 − v0 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in ROWS:
        v0, v1 = ours["v0"][row.name], ours["v1"][row.name]
        change = f"{v1 - v0:+.2f}".replace("-", "−")
        name = row.name.replace("CIFAR-10 Test", "no perturbation")
        lines.append(
            f"| {name} | {v0:.2f} | {theirs['v0'][row.name]:.2f} "
            f"| **{v1:.2f}** | {theirs['v1'][row.name]:.2f} | {change} |"
        )
    return "\n".join(lines)


def hardware(training: dict) -> str:
    """What a run was done on, such as "2 threads of Intel(R) Xeon(R) Processor" or "1 × NVIDIA H200"."""
    machine = training["hardware"]
    if machine["device"] == "cpu":
        return f"{machine['processes'] * machine['threads_per_process']} threads of {machine['name']}"
    return f"{machine['processes']} × {machine['name']}"


def training_command(training: dict) -> str:
    """The command that does a run again, with the launcher's options that it ran under."""
    machine = training["hardware"]
    options = ["--cpu"] if machine["device"] == "cpu" else []
    options += [f"--{name} {machine[key]}" for name, key in LAUNCHER_OPTIONS.items()]
    return training["command"].replace("accelerate launch", f"accelerate launch {' '.join(options)}", 1)


def training_speed(training: dict) -> str:
    """A run's speed over all its epochs, such as "230 images/s, 60 % of what a matrix product reached there"."""
    seconds = sum(epoch["seconds"] for epoch in training["epochs"])
    images_per_second, peak_share = (
        sum(epoch[key] * epoch["seconds"] for epoch in training["epochs"]) / seconds
        for key in ("images_per_second", "peak_share")
    )
    return f"{images_per_second:.0f} images/s, {100 * peak_share:.0f} % of what a matrix product reached there"


def training_times(releases: Path) -> str:
    """Minutes, speed and hardware of both training runs."""
    times = []
    for version in ("v0", "v1"):
        run = json.loads((releases / version / "training.json").read_text())
        times.append(
            f"{version} in {run['seconds'] / 60:.0f} minutes, {len(run['epochs'])} epochs, on {hardware(run)} "
            f"({training_speed(run)})"
        )
    return f"Trained: {'; '.join(times)}."


def render_card(version: str, releases: Path) -> str:
    """README.md of the Hub repository of `version`."""
    training = json.loads((releases / version / "training.json").read_text())
    accuracies = Table.load(releases / version / "results").accuracies()
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="image-classification",
        datasets=["uoft-cs/cifar10"],
        metrics=["accuracy"],
        tags=["robustness", "anti-aliasing", "cifar-10"],
        base_model="MamaPearl/nula-cifar10-robust-v0" if version == "v1" else None,
        base_model_relation="finetune" if version == "v1" else None,
        model_name=repository_name(version),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="uoft-cs/cifar10",
                dataset_name="CIFAR-10",
                dataset_split="test",
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(accuracy, 2),
            )
            for name, accuracy in accuracies.items()
        ],
    )
    return ModelCard.from_template(
        data,
        template_str=files("nula.model_card").joinpath("template.md").read_text(encoding="utf-8"),
        name=repository_name(version),
        version=version,
        training=training,
        hardware=hardware(training),
        speed=training_speed(training),
        command=training_command(training),
        results=results_table(releases),
    ).content


def with_results(readme: str, releases: Path) -> str:
    """`readme` with what stands between its two markers replaced: the table and the training times."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README must hold the markers {BEGIN!r} and {END!r} once each.")
    before, rest = readme.split(BEGIN)
    derived = f"{results_table(releases)}\n\n{training_times(releases)}"
    return f"{before}{BEGIN}\n\n{derived}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewrite the results table of a README from the result files.")
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    arguments = parser.parse_args()
    arguments.readme.write_text(
        with_results(arguments.readme.read_text(encoding="utf-8"), arguments.releases), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
