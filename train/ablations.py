"""What was tried: runs trials, measured on images held out of the training split, and tells what they gave.

python -m nula.train.ablations --dataset uoft-cs/cifar10

Trials are short and of narrow nets, so that many fit on a small machine: they rank choices, and do not foretell the
release's accuracy. Each leaves its training record in train/ablations/, validation accuracies included;
one that is there already is not run again. ABLATIONS.md is derived from the records.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from statistics import mean

import torch

from nula.model_card.tables import markdown_table
from nula.perturbations.corruptions import CORRUPTIONS
from nula.records.cifar10 import CIFAR10
from nula.records.table import Table

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "ablations"
BASE = "base"
VALIDATION_IMAGES = 5000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One change to the recipe or the net of a study's base trial.

    Args:
        change: in words.
        recipe: as values of the scripts' --recipe.
        net: as values of their --config, by field.
        processes, mixed_precision, seed: of the run.
    """

    change: str
    recipe: tuple[str, ...] = ()
    net: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    mixed_precision: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Study:
    """Trials that are compared with one another.

    Args:
        title: of its table.
        script: that trains.
        folder: of the records, in RESULTS.
        schedule: the recipe of every trial, as values of --recipe.
        net: the net of the base trial, as values of --config by field.
        trials: by name, the base first.
        train_split: the images, of which the last VALIDATION_IMAGES are held out.
        mixed_precision: of every trial that names none.
        corrupted_split: images to measure the common corruptions on, if any, held out by every trial.
    """

    title: str
    script: str
    folder: Path
    schedule: tuple[str, ...]
    net: Mapping[str, str]
    trials: Mapping[str, Trial]
    train_split: str = "train"
    mixed_precision: str = "bf16"
    corrupted_split: str | None = None

    def launcher_arguments(self, name: str) -> list[str]:
        """Return the options of `accelerate launch`."""
        trial = self.trials[name]
        processes = ["--num_machines", "1", "--num_processes", str(trial.processes)]
        precision = trial.mixed_precision or self.mixed_precision
        return [*processes, "--mixed_precision", precision, "--dynamo_backend", "no"]

    def arguments(self, name: str, dataset: str, output_dir: str) -> list[str]:
        """Return the script and its options."""
        trial = self.trials[name]
        data = ["--dataset", dataset, "--output_dir", output_dir, "--validation_images", str(VALIDATION_IMAGES)]
        options = ["--seed", str(trial.seed)]
        if self.train_split != "train":
            options += ["--train_split", self.train_split]
        net = [f"{field}={value}" for field, value in {**self.net, **trial.net}.items()]
        options += ["--recipe", *self.schedule, *trial.recipe, "--config", *net]
        return [self.script, *data, *options]

    def run(self, name: str, dataset: str) -> None:
        """Run one trial and keep its records."""
        dataset = str(Path(dataset).resolve()) if Path(dataset).exists() else dataset
        with tempfile.TemporaryDirectory() as folder:
            output_dir = Path(folder) / name
            launch = [sys.executable, "-m", "accelerate.commands.launch"]
            launch += [*self.launcher_arguments(name), *([] if torch.cuda.is_available() else ["--cpu"])]
            subprocess.run([*launch, *self.arguments(name, dataset, str(output_dir))], cwd=FOLDER.parent, check=True)
            if self.corrupted_split:
                measure = [sys.executable, "-m", "nula", *self.measuring_arguments(dataset, str(output_dir))]
                subprocess.run([*measure, "--output", str(self.folder / name)], check=True)
            self.folder.mkdir(exist_ok=True)
            shutil.copy(output_dir / "training.json", self.folder / f"{name}.json")

    def measuring_arguments(self, dataset: str, model: str) -> list[str]:
        """Return the arguments of `nula` that measure a trial's net under the common corruptions."""
        arguments = ["evaluate", "corruptions", "--model", model, "--dataset", dataset]
        return [*arguments, "--test_split", str(self.corrupted_split)]

    def load_corrupted(self) -> dict[str, Table]:
        """Return the committed answers under the common corruptions, by trial, of those that have any."""
        folders = {name: self.folder / name / "corruptions" for name in self.trials}
        return {name: Table.load(folder) for name, folder in folders.items() if folder.exists()}

    def load_records(self) -> dict[str, dict]:
        """Return the committed records, in the order of the trials."""
        return {name: json.loads((self.folder / f"{name}.json").read_text()) for name in self.trials}


V0 = Study(
    title="What was tried for v0",
    script="train/train_v0.py",
    folder=RESULTS,
    schedule=("warmup_epochs=1", "cosine_epochs=1", "restarts=0"),
    net={"stem_channels": "24", "stem_dropout": "0.2", "hidden_sizes": "[32,80,144,248]", "depths": "[1,1,1,1]"},
    trials={
        BASE: Trial(change="none: half the widths of v0"),
        "seed-1": Trial(change="another seed", seed=1),
        "float32": Trial(change="float32 in place of bfloat16", mixed_precision="no"),
        "two-processes": Trial(change="two processes with half of each batch each", processes=2),
        "adamw": Trial(change="AdamW at batch 128 in place of Muon", recipe=("optimizer=adamw", "batch_size=128")),
        "half-step": Trial(change="half the step of Muon", recipe=("weight_rms=0.003",)),
        "one-rate": Trial(change="one learning rate for all parameters", recipe=("vector_rate_factor=1",)),
        "no-decay": Trial(change="no weight decay", recipe=("weight_decay=0",)),
        "smoothing-10": Trial(change="label smoothing of 0.1", recipe=("label_smoothing=0.1",)),
        "crop-4": Trial(change="crops from a border of 4 pixels", recipe=("crop_padding=4",)),
        "share-50": Trial(change="half of the images augmented", recipe=("augmented_share=0.5",)),
        "epsilon-20": Trial(change="checkerboards of up to 0.2", recipe=("checkerboard_epsilon=[0,0.2]",)),
        "no-dropout": Trial(change="no dropout behind the stem", net={"stem_dropout": "0.0"}),
        "dropout-35": Trial(change="dropout of 0.35", net={"stem_dropout": "0.35"}),
        "dropout-50": Trial(change="dropout of 0.5", net={"stem_dropout": "0.5"}),
        "stem-48": Trial(change="twice the channels in the stem", net={"stem_channels": "48"}),
        "three-stages": Trial(
            change="three stages, at the same cost", net={"hidden_sizes": "[28,64,216]", "depths": "[1,1,2]"}
        ),
    },
)

V2 = Study(
    title="What was tried for v2",
    script="train/train_v2.py",
    folder=RESULTS / "v2",
    schedule=("warmup_epochs=1", "cosine_epochs=4", "batch_size=256"),
    net={"hidden_sizes": "[56,120,160]"},
    train_split="train[:22500]+train[45000:]",
    mixed_precision="no",
    corrupted_split="train[47500:]",
    trials={
        BASE: Trial(change="none: half the widths of v2, with GELU and with maxima of 2×2 before the low-pass"),
        "relu": Trial(change="ReLU in place of GELU", net={"hidden_act": "relu"}),
        "blur": Trial(
            change="normalisation and GELU before the low-pass, as in v0, no maximum", net={"downsampling": "blur"}
        ),
        "plain": Trial(change="both of these", net={"hidden_act": "relu", "downsampling": "blur"}),
        "one-conv": Trial(
            change="residual layers of one convolution, twice as many",
            net={"layer_convolutions": "1", "depths": "[2,2,2]"},
        ),
        "shallow": Trial(
            change="residual layers of one convolution, and wider",
            net={"layer_convolutions": "1", "hidden_sizes": "[72,152,184]"},
        ),
        "unwhitened": Trial(change="a stem that is drawn and trained", recipe=("whitening_epsilon=null",)),
        "no-contrast": Trial(change="contrast not normalised", net={"contrast_epsilon": "null"}),
        "keep-mean": Trial(
            change="both of these, and the mean kept where contrast is normalised", net={"contrast_keeps_mean": "true"}
        ),
        "epsilon-20": Trial(change="both of these, and flat images raised less", net={"contrast_epsilon": "0.2"}),
    },
)

V2_LONG = Study(
    title="What keeps v2 from memorising",
    script="train/train_v2.py",
    folder=RESULTS / "v2-long",
    schedule=(
        *("warmup_epochs=1", "cosine_epochs=23", "batch_size=128", "crop_padding=4", "label_smoothing=0.2"),
        *("augmix_share=0.6", "cutout_probability=0.5", "noise_probability=0.5", "resize_scale=[0.2,0.8]"),
    ),
    net={"hidden_sizes": "[56,120,160]"},
    train_split="train[:5000]+train[45000:]",
    mixed_precision="no",
    corrupted_split="train[47500:48500]",
    trials={
        BASE: Trial(change="none: half the widths of v2, and the mix that it had before these trials"),
        "crop-2": Trial(change="crops from a border of 2 pixels", recipe=("crop_padding=2",)),
        "smoothing-10": Trial(change="label smoothing of 0.1", recipe=("label_smoothing=0.1",)),
        "views": Trial(
            change="two views and their divergence, label smoothing of 0.1, half the epochs",
            recipe=("views=2", "consistency_weight=4", "label_smoothing=0.1", "cosine_epochs=11"),
        ),
        "no-augmix": Trial(change="no chains of AugMix", recipe=("augmix_share=0",)),
        "no-cutout": Trial(change="no gray squares", recipe=("cutout_probability=0",)),
        "noise-25": Trial(change="a quarter of the images noisy", recipe=("noise_probability=0.25",)),
        "scale-60": Trial(change="resized to 0.2 to 0.6 of the size", recipe=("resize_scale=[0.2,0.6]",)),
    },
)
STUDIES = (V0, V2, V2_LONG)

# The rows that a choice moves most; all twenty are in the records.
SUMMARY_ROWS = {
    "Clean (CIFAR-10 Test)": "clean",
    "Gaussian Noise σ = 0.05": "noise",
    "Resize x0.25 - Bilinear": "resize ×0.25",
    "Resize x0.5 + Decimate x2": "resize ×0.5, decimate",
    "Grayscale (Full Mix)": "grayscale",
    "Gaussian Blur (k=5, σ=1.0)": "blur",
}


def render() -> str:
    """ABLATIONS.md from the training records."""
    v0, v2, long = (study.load_records() for study in STUDIES)
    lines = [*render_v0(v0), "", *restart_lines(), "", *render_v2(v2), "", *render_v2_long(long), ""]
    return "\n".join(lines)


def render_v0(records: dict[str, dict]) -> list[str]:
    """Return the lines on what was tried for v0, from its records by trial."""
    base = records[BASE]
    return [
        f"# {V0.title}",
        "",
        "Generated by `python -m nula.train.ablations` from the records in `ablations/`. Accuracy in percent on the",
        f"last {VALIDATION_IMAGES:,} images of CIFAR-10's training split, on which these runs were not trained, and",
        "the difference that each change makes, in points. Every run is short, "
        f"{len(base['epochs'])} epochs, and narrow,",
        f"{base['parameters'] / 1e6:.2f} M parameters unless the change says otherwise. One seed each: `seed-1` is an "
        "example of what the draw",
        "alone can make, and the standard error of a difference between two independent samples of that size is up to",
        "1 point.",
        "",
        "All were run after v0 had been trained. The optimiser, the stages, the share of augmented images and the stem",
        "had been settled by trials like them in float32, of which commit 3432fd1 has the records; the other trials",
        "settled nothing.",
        "",
        *study_lines(V0, records),
    ]


def render_v2(records: dict[str, dict]) -> list[str]:
    """Return the lines on what was tried for v2, from its records by trial."""
    base = records[BASE]
    return [
        f"# {V2.title}",
        "",
        f"Measured as those of v0, but trained in float32 on the first {base['dataset']['images']:,} images alone, for "
        f"{len(base['epochs'])} epochs; records in",
        f"`ablations/v2/`. The base has {base['parameters'] / 1e6:.2f} M parameters, and the changes of the net keep "
        "its cost about the same.",
        "",
        "GELU and the maxima were settings of the net in commit 2a9c428, whose code ran these trials, and",
        "`contrast_keeps_mean` was one in commit 5074814, which ran the last two. As ReLU and v0's low-pass gave no",
        "less, v2 has those. Contrast normalised down to a mean of zero costs accuracy in the twenty rows, and",
        "gains it where contrast is low; with the mean kept it costs less and gains more. So the mean is kept.",
        "",
        *study_lines(V2, records),
    ]


def render_v2_long(records: dict[str, dict]) -> list[str]:
    """Return the lines on what keeps v2 from memorising, from its records by trial."""
    base = records[BASE]
    return [
        f"## {V2_LONG.title}",
        "",
        "What only makes training harder loses in short runs, so these are of many epochs on few images: "
        f"{len(base['epochs'])} of {base['dataset']['images']:,},",
        "with the same net, its contrast normalised about the mean; records in `ablations/v2-long/`.",
        "",
        *study_lines(V2_LONG, records),
        "",
        "Almost whatever makes training easier gains, so that even these runs were too short to memorise. v2 runs for",
        "more than three times as many epochs, with a net four times as large; its shares of AugMix, cutout and noise",
        "lie between those of the base and of the trials. Two views at the same cost lose. Smaller sizes gain where",
        "images are reduced most, which is v2's weakest row.",
    ]


def study_lines(study: Study, records: dict[str, dict]) -> list[str]:
    """Return the table of a study's trials and their commands."""
    values = {name: _summary_values(record) for name, record in records.items()}
    titles = [*SUMMARY_ROWS.values(), "mean of all 20 rows"]
    if study.corrupted_split:
        titles += ["low contrast", f"all {len(CORRUPTIONS)} corruptions"]
        corrupted = study.load_corrupted()
        for name in study.trials:
            accuracy = corrupted[name].accuracies() if name in corrupted else {}
            contrast = [value for row, value in accuracy.items() if row.startswith("contrast ")]
            values[name] += [mean(contrast), mean(accuracy.values())] if accuracy else [nan, nan]
    lines = [f"| trial | change | {' | '.join(titles)} |", "|---|---|" + "--:|" * len(titles)]
    commands = []
    for name, record in records.items():
        if name == BASE:
            cells = [f"{value:.2f}" for value in values[name]]
        else:
            differences = [value - before for value, before in zip(values[name], values[BASE], strict=True)]
            cells = [f"{difference:+.2f}".replace("-", "−").replace("+nan", "–") for difference in differences]
        lines.append(f"| {name} | {study.trials[name].change} | {' | '.join(cells)} |")
        arguments = [*study.launcher_arguments(name), *study.arguments(name, "cifar10", name)]
        arguments = ["--cpu", *arguments] if record["hardware"]["device"] == "cpu" else arguments
        commands.append(f"accelerate launch {shlex.join(arguments)}")
    if study.corrupted_split:
        commands.append(f"nula {shlex.join([*study.measuring_arguments('cifar10', BASE), '--output', BASE])}")
    return [*lines, "", "The commands:", "", "```", *commands, "```"]


def _summary_values(record: dict) -> list[float]:
    """Accuracy in percent under SUMMARY_ROWS, and the mean over all."""
    # A part of the training split is not known to be of CIFAR-10, and its clean row has the title of other data.
    accuracy = {row.replace("Clean (CIFAR-10 Test)", "Clean"): value for row, value in record["validation"].items()}
    rows = [row.replace("Clean (CIFAR-10 Test)", "Clean") for row in SUMMARY_ROWS]
    return [*(accuracy[row] for row in rows), mean(accuracy.values())]


def restart_lines() -> list[str]:
    """How the restarts of v0 were settled, from their records."""
    record = json.loads((RESULTS / "restart.json").read_text())
    single = json.loads((RESULTS / "single-cycle.json").read_text())
    release = Table.load(FOLDER.parent / "releases" / "v0" / "results").accuracies()
    epochs, dropout = len(single["epochs"]), single["architecture"]["stem_dropout"]
    return [
        "## The restarts",
        "",
        "Made by hand for the first one, with the release's own net, and measured on images it was trained on: this",
        "tells what a restart gains and unlearns, not how it generalises. Accuracy in percent on",
        f"{record['images']}.",
        "",
        _table({run["run"]: run["accuracy"] for run in record["runs"]}),
        "",
        "Tried in place of the restarts, with an earlier state of the code, and given up after it had been measured on",
        "the test split: accuracy there in percent, beside that of `releases/v0/results`.",
        "",
        _table({f"one cycle of {epochs} epochs, dropout {dropout}": single["test"], "the release": release}),
    ]


def _table(accuracies: dict[str, dict[str, float]]) -> str:
    """Markdown of some runs' accuracies, under those of SUMMARY_ROWS that all of them have."""
    rows = [row for row in SUMMARY_ROWS if all(row in accuracy for accuracy in accuracies.values())]
    cells = {run: [f"{accuracy[row]:.2f}" for row in rows] for run, accuracy in accuracies.items()}
    return markdown_table("run", [SUMMARY_ROWS[row] for row in rows], cells)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.train.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default=CIFAR10, help="Hub id, or a folder of the same layout")
    arguments = parser.parse_args()
    for study in STUDIES:
        for name in study.trials:
            if not (study.folder / f"{name}.json").exists():
                study.run(name, arguments.dataset)
    (FOLDER / "ABLATIONS.md").write_text(render())


if __name__ == "__main__":
    main()
