"""The model card, and the results table of the project's README, from committed result files alone.

python -m nula.model_card.card rewrites the table between the markers in README.md.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nula.evaluation.accuracy import Table
from nula.evaluation.findings import findings
from nula.model_card.tables import (
    VERSIONS,
    attacks_table,
    calibration_table,
    corruptions_table,
    measured,
    results_table,
    seeds_table,
)
from nula.provenance import training_command

BEGIN, END = "<!-- results: begin (python -m nula.model_card.card) -->", "<!-- results: end -->"


PICTURES = {  # of releases/figures, as nula.model_card.figures draws them, with what each shows
    "table": "Accuracy under every perturbation, with 95 % intervals",
    "noise_histogram": "Accuracy over realisations of Gaussian noise, σ = 0.05",
    "noise_sweep": "Accuracy against the strength of Gaussian noise, with 95 % intervals",
    "running_gap": "v1 − v0 under noise over the first k test images, a line for each realisation",
    "sensitivity": "Norm of the Jacobian of the logits with respect to the pixels, under noise",
    "curvature": "Both ends of the Hessian's spectrum, under noise",
    "path": "Accuracy on the straight line through the weights of v0 and v1",
    "confusion": "What each class is called under noise, σ = 0.05",
    "perturbations": "One test image under every perturbation",
    "flipped": "Test images to which v0 and v1 give different answers",
}


def pictures(releases: Path) -> dict[str, str]:
    """The pictures that were drawn for `releases`, by name, with their captions."""
    return {name: caption for name, caption in PICTURES.items() if (releases / "figures" / f"{name}.png").is_file()}


def repository_name(version: str) -> str:
    return f"nula-cifar10-robust-{version}"


def hardware(training: dict) -> str:
    """What a run was done on, such as "2 threads of Intel(R) Xeon(R) Processor" or "1 × NVIDIA H200"."""
    machine = training["hardware"]
    if machine["device"] == "cpu":
        return f"{machine['processes'] * machine['threads_per_process']} threads of {machine['name']}"
    return f"{machine['processes']} × {machine['name']}"


def training_speed(training: dict) -> str:
    """A run's speed over all its epochs, such as "230 images/s, 60 % of what a matrix product reached there"."""
    if training["images_per_second"] is None:
        return "less than an epoch, too short to tell its speed"
    speed, share = training["images_per_second"], 100 * training["peak_share"]
    return f"{speed:.0f} images/s, {share:.0f} % of what a matrix product reached there"


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


def render_card(version: str, releases: Path, hub_id: str | None = None, base: str | None = None) -> str:
    """README.md of the Hub repository `hub_id` of `version`, by default the project's own.

    `base` is the Hub id of the weights that v1 was fine-tuned from, by default the project's own v0; "" where they
    are on no Hub.
    """
    base = f"MamaPearl/{repository_name('v0')}" if base is None else base
    training = json.loads((releases / version / "training.json").read_text())
    table = Table.load(releases / version / "results")
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="image-classification",
        datasets=["uoft-cs/cifar10"],
        metrics=["accuracy"],
        tags=["robustness", "anti-aliasing", "cifar-10"],
        base_model=base if version == "v1" and base else None,
        base_model_relation="finetune" if version == "v1" and base else None,
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
            for name, accuracy in table.accuracies().items()
        ],
    )
    return ModelCard.from_template(
        data,
        template_str=files("nula.model_card").joinpath("template.md").read_text(encoding="utf-8"),
        name=repository_name(version),
        hub_id=hub_id or f"MamaPearl/{repository_name(version)}",
        version=version,
        test_images=len(table.labels),
        training=training,
        hardware=hardware(training),
        speed=training_speed(training),
        command=training_command(training),
        results=results_table(releases),
        seeds=seeds_table(version, releases),
        corruptions=corruptions_table(releases),
        attacks=attacks_table(releases),
        calibration=calibration_table(releases),
        claims=findings(*(releases / name / "results" for name in VERSIONS)) if len(measured(releases)) == 2 else [],
        pictures=pictures(releases),
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
