"""python -m nula.evaluation table --model releases/v1 --output releases/v1/results

Measures classifiers. Every command leaves raw results with their provenance; `compare` reads two tables again.
"""

import argparse
import datetime
import os
import shutil
import signal
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from nula.data import CIFAR10, Split, load_split
from nula.evaluation import studies
from nula.evaluation.claims import findings
from nula.evaluation.classifiers import load_classifier
from nula.evaluation.measuring import Measurement, evaluate, partial_folder, table_rows
from nula.evaluation.monte_carlo import noise_rows
from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.records.provenance import command_again, library_versions, public_argument
from nula.records.statistics import calibration, flips, mcnemar_p, wilson_interval
from nula.records.table import Table
from nula.records.weights import weights_sha256
from nula.runtime.arguments import at_least
from nula.runtime.launcher import follow_launcher, keep_memory


def provenance(model: str, dataset: str, data: Split, device: torch.device) -> dict:
    """What a result must tell of how it came about, settings aside, which the command tells."""
    return {
        "model": public_argument(model),
        "weights_sha256": weights_sha256(model),
        "dataset": {
            "name": public_argument(dataset),
            "split": "test",
            "images": len(data.labels),
            "sha256": data.fingerprint,
        },
        "definitions_version": DEFINITIONS_VERSION,
        "command": command_again("python -m nula.evaluation", sys.argv[1:]),
        "device": device.type,
        "date": datetime.date.today().isoformat(),
        "versions": library_versions(),
    }


def folders(models: list[str], output: Path) -> list[Path]:
    """Where each model's results go: `output` itself for one, a folder in it named after each of several."""
    names = [Path(model).name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"models of the same name would overwrite each other's results: {', '.join(names)}.")
    return [output] if len(models) == 1 else [output / name for name in names]


def prepare(arguments: argparse.Namespace) -> Accelerator:
    accelerator = Accelerator(cpu=arguments.cpu)
    keep_memory(accelerator.device)
    return accelerator


def measure(
    arguments: argparse.Namespace,
    rows: list[Measurement],
    part: str = "",
    keep_logits: bool = False,
    arrays: dict[str, str] | None = None,
) -> None:
    """Evaluate every model under `rows` and print what came out. `arrays` are the hashes of images read elsewhere."""
    accelerator = prepare(arguments)
    data = load_split(arguments.dataset, "test")
    tables, partial = [], []
    for model, output in zip(arguments.model, folders(arguments.model, arguments.output)):
        classifier = load_classifier(model, accelerator.device)
        described = provenance(model, arguments.dataset, data, accelerator.device)
        if arrays is not None:
            described["arrays_sha256"] = arrays
        folder = output / part
        table = evaluate(
            classifier,
            data,
            rows,
            accelerator,
            described,
            folder=folder,
            keep_logits=keep_logits,
        )
        tables.append(table)
        if accelerator.is_main_process:
            if table.logits is not None:
                folder.mkdir(parents=True, exist_ok=True)
                studies.save_golden(classifier, data, accelerator.device, folder / "golden.npz")
                calibrations = {
                    row: asdict(calibration(logits, table.labels)) for row, logits in zip(table.rows, table.logits)
                }
                studies.save_json({"rows": calibrations}, table.provenance, folder / "calibration.json")
            table.save(folder)  # last, as its provenance tells that all is there
            partial.append(partial_folder(folder, described, rows))
            print(f"\n{model}: {len(table.labels)} images; raw results in {folder}")
            print_accuracies(table)
    if accelerator.is_main_process:
        for folder in partial:  # now that no model is left for which the same command would come by these again
            shutil.rmtree(folder)
        for a, b in combinations(range(len(tables)), 2):
            print(f"\n{arguments.model[b]} against {arguments.model[a]}")
            print_comparison(tables[a], tables[b])


def print_accuracies(table: Table) -> None:
    for row, seed, predictions in zip(table.rows, table.seeds, table.predictions):
        correct, total = int((predictions == table.labels).sum()), len(table.labels)
        low, high = wilson_interval(correct, total)
        print(f"{row:<34} seed {seed:<3} {100 * correct / total:6.2f} %   95 % in {100 * low:.2f} to {100 * high:.2f}")


def print_comparison(a: Table, b: Table) -> None:
    """Of two tables of the same rows and images: the difference in points, McNemar's p, and how many answers differ."""
    if (a.rows, a.seeds) != (b.rows, b.seeds) or not np.array_equal(a.labels, b.labels):
        raise ValueError("only tables of the same rows, seeds and images can be compared.")
    for row, first, second in zip(a.rows, a.predictions, b.predictions):
        right, right_too = first == a.labels, second == a.labels
        difference = 100 * (right_too.mean() - right.mean())
        print(
            f"{row:<34} {difference:+6.2f}   p = {mcnemar_p(right, right_too):.2g}   {len(flips(first, second))} flips"
        )


def table(arguments: argparse.Namespace) -> None:
    measure(arguments, table_rows(arguments.seed), keep_logits=True)


def noise(arguments: argparse.Namespace) -> None:
    measure(arguments, noise_rows(draws=arguments.draws), "noise")


def corruptions(arguments: argparse.Namespace) -> None:
    labels = load_split(arguments.dataset, "test").labels
    rows = studies.corruption_rows(arguments.cifar10c, labels)
    if arguments.cifar10c is None:
        measure(arguments, rows, "corruptions")
    else:
        measure(arguments, rows, "cifar10c", arrays=studies.array_hashes(arguments.cifar10c))


def compare(arguments: argparse.Namespace) -> None:
    print_comparison(*map(Table.load, arguments.results))


def claims(arguments: argparse.Namespace) -> None:
    for finding in findings(*arguments.results):
        print(f"{finding.claim}: {finding.verdict}")
        if finding.evidence:
            print(f"    {finding.evidence}")


def single_device(arguments: argparse.Namespace) -> torch.device:
    """The device of a study. ValueError under a launcher of several processes."""
    accelerator = prepare(arguments)
    if accelerator.num_processes > 1:
        raise ValueError(f"{arguments.command} runs in one process, got {accelerator.num_processes}.")
    return accelerator.device


def study(arguments: argparse.Namespace) -> None:
    """One of the studies of derivatives and attacks, each on the first `--images` of the test split."""
    device = single_device(arguments)
    data = load_split(arguments.dataset, "test").first(arguments.images)
    for model, output in zip(arguments.model, folders(arguments.model, arguments.output)):
        classifier, described = load_classifier(model, device), provenance(model, arguments.dataset, data, device)
        if arguments.command == "null-space":
            result = studies.null_space_table(classifier, data, device, described)
            result.save(output / "null_space")
            print_accuracies(result)
        elif arguments.command == "certified":
            result = studies.certified(classifier, data, device, arguments.draws)
            studies.save_json(result, described, output / "certified.json")
        elif arguments.command == "sensitivity":
            result = studies.sensitivity(classifier, data, device, studies.SIGMAS)
            studies.save_json(result, described, output / "sensitivity.json")
        else:
            result = studies.curvature(classifier, data, device, studies.SIGMAS, arguments.subsets)
            studies.save_json(result, described, output / "curvature.json")


def basin(arguments: argparse.Namespace) -> None:
    device = single_device(arguments)
    data = load_split(arguments.dataset, "test").first(arguments.images)
    calibration = load_split(arguments.dataset, "train").first(arguments.images)
    start, end = load_classifier(arguments.start, device), load_classifier(arguments.model, device)
    described = provenance(arguments.model, arguments.dataset, data, device)
    described["start_weights_sha256"] = weights_sha256(arguments.start)
    studies.save_json(studies.shapes(start, end, data, device), described, arguments.output / "basin.json")
    described["statistics"] = {"split": "train", "images": len(calibration.labels), "sha256": calibration.fingerprint}
    path = studies.path_table(start, end, data, calibration.images, device, described)
    path.save(arguments.output / "basin")
    print_accuracies(path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nula.evaluation", description="Measure classifiers.")
    commands = parser.add_subparsers(required=True, dest="command")

    def add(name: str, run, text: str, several: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        action = {"action": "append"} if several else {}
        command.add_argument("--model", required=True, help="Hub id or folder of a model of ten classes", **action)
        command.add_argument("--dataset", default=CIFAR10, help="Hub id, or a folder of the same layout")
        command.add_argument("--output", type=Path, required=True, help="receives the results")
        command.add_argument("--cpu", action="store_true", help="even where there is an accelerator")
        command.set_defaults(run=run)
        return command

    command = add("table", table, "accuracy under the twenty perturbations")
    command.add_argument("--seed", type=int, default=0, help="of the Gaussian noise")
    command = add("noise", noise, "accuracy over many realisations of Gaussian noise, and over its strength")
    command.add_argument("--draws", type=at_least(2), default=20, help="realisations at σ = 0.05")
    command = add("corruptions", corruptions, "accuracy under common corruptions at five severities")
    command.add_argument("--cifar10c", type=Path, help="folder of CIFAR-10-C's own arrays, in place of look-alikes")
    command = add("sensitivity", study, "norm of the Jacobian of the logits with respect to the pixels")
    command.add_argument("--images", type=at_least(2), default=1000, help="of the test split, from its start")
    command = add("curvature", study, "ends of the spectrum of the loss's Hessian in the parameters")
    command.add_argument("--images", type=at_least(1), default=192, help="of the test split, from its start")
    command.add_argument(
        "--subsets", type=at_least(2), default=4, help="of those images, each with a spectrum of its own"
    )
    command = add("null-space", study, "accuracy under attacks that downsampling removes")
    command.add_argument("--images", type=at_least(2), default=1000, help="of the test split, from its start")
    command = add("certified", study, "certified accuracy of the smoothed classifier against the radius")
    command.add_argument("--images", type=at_least(1), default=100, help="of the test split, from its start")
    command.add_argument("--draws", type=at_least(1), default=500, help="of the noise for each image and strength")
    command = add("basin", basin, "what lies on the line between two models", several=False)
    command.add_argument("--start", required=True, help="the model that --model was fine-tuned from")
    command.add_argument(
        "--images", type=at_least(studies.LINE_BATCH + 1), default=2000, help="of the test split, from its start"
    )
    command = commands.add_parser("compare", help="two stored tables, row by row")
    command.add_argument("results", type=Path, nargs=2, help="folders of predictions.npz")
    command.set_defaults(run=compare)
    command = commands.add_parser("claims", help="what the results say about the claims of the published cards")
    command.add_argument("results", type=Path, nargs=2, help="folders of the results of v0 and of v1")
    command.set_defaults(run=claims)
    return parser


def main() -> None:
    follow_launcher()
    arguments = build_parser().parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 in full
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher passes on what the whole process group got already
        resumable = arguments.run in (table, noise, corruptions)
        if os.environ.get("RANK", "0") == "0":
            print("interrupted" + resumable * "; the same command goes on after the last finished row", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
