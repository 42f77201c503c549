"""python -m nula.evaluation table --model releases/v1 --output releases/v1/results"""

import argparse
import datetime
import sys
from pathlib import Path

import torch

from nula.dataset import load_split
from nula.evaluation.accuracy import Classifier, evaluate
from nula.image_processing_nula import NulaImageProcessor, normalize
from nula.perturbations.suite import DEFINITIONS_VERSION, ROWS
from nula.provenance import command_again, library_versions, public_argument
from nula.weights import load_model, weights_sha256


def load_classifier(folder: str, device: torch.device) -> Classifier:
    """The model in `folder` as a function of pixels in [0, 1], with its own processor's normalisation."""
    model = load_model(folder).to(device, memory_format=torch.channels_last)
    processor = NulaImageProcessor.from_pretrained(folder)

    def classify(pixels: torch.Tensor) -> torch.Tensor:
        inputs = normalize(pixels, processor.image_mean, processor.image_std)
        return model(inputs.contiguous(memory_format=torch.channels_last)).logits

    return classify


def table(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    classifier = load_classifier(arguments.model, device)
    data = load_split(arguments.dataset, "test")
    provenance = {
        "weights_sha256": weights_sha256(arguments.model),
        "dataset": {"name": public_argument(arguments.dataset), "split": "test", "sha256": data.fingerprint},
        "definitions_version": DEFINITIONS_VERSION,
        "noise_seed": arguments.seed,
        "command": command_again("python -m nula.evaluation", sys.argv[1:]),
        "device": device.type,
        "date": datetime.date.today().isoformat(),
        "versions": library_versions(),
    }
    result = evaluate(classifier, data.images, data.labels, device, arguments.seed, provenance)
    result.save(arguments.output)
    for row, accuracy in zip(ROWS, result.accuracies().values()):
        print(f"{row.category:<14} {row.name:<34} {accuracy:6.2f} %")
    print(f"{len(data.labels)} images; raw predictions in {arguments.output}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.evaluation", description="Measure a classifier.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "table",
        help="accuracy under the twenty perturbations",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--model", required=True, help="Hub id, or folder of a release or of a training run")
    command.add_argument("--dataset", default="uoft-cs/cifar10", help="Hub id, or a folder of the same layout")
    command.add_argument("--output", type=Path, required=True, help="receives predictions.npz and provenance.json")
    command.add_argument("--seed", type=int, default=0, help="of the Gaussian noise")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    command.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
