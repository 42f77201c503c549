"""Size, speed and accuracy of the forms a release can be deployed in, in one run.

python -m nula.benchmarks.forms --model releases/v1 writes benchmarks/forms.json, of which
python -m nula.benchmarks.tables makes benchmarks/README.md.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from tqdm import tqdm

from nula.benchmarks.timing import interleaved, machine
from nula.data import SIDE, DataSource, add_data_arguments, to_pixels
from nula.evaluation.classifiers import OnnxModel
from nula.publishing.export import write_forms
from nula.records.provenance import command_again
from nula.records.weights import weights_sha256

BATCH_SIZES = (1, 64)
IMAGES = 256  # classified by each form in each round
MODEL = "the model itself"

Form = Callable[[torch.Tensor], torch.Tensor]  # pixels (B, 3, 32, 32) in [0, 1] to logits (B, 10)


def build_forms(model: str, folder: Path) -> tuple[dict[str, Form], dict[str, int]]:
    """Every form, and its bytes; files are written to `folder`."""
    classifier = write_forms(model, folder)
    quantize_dynamic(folder / "nula.onnx", folder / "int8.onnx")
    half = copy.deepcopy(classifier).to(torch.bfloat16)
    forms = {
        MODEL: classifier,
        "torch.export": torch.export.load(folder / "nula.pt2").module(),
        "ONNX": OnnxModel(folder / "nula.onnx"),
        "ONNX, weights of 8 bits (dynamic)": OnnxModel(folder / "int8.onnx"),
        "bfloat16": lambda pixels: half(pixels.to(torch.bfloat16)).float(),
    }
    parameters = sum(tensor.nbytes for tensor in classifier.state_dict().values())
    files = [(folder / file).stat().st_size for file in ("nula.pt2", "nula.onnx", "int8.onnx")]
    return forms, dict(zip(forms, [parameters, *files, parameters // 2]))


@torch.inference_mode()
def accuracy(form: Form, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    answers = torch.cat([form(batch).argmax(dim=1) for batch in tqdm(pixels.split(250), desc="classifying")])
    return 100 * (answers == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.benchmarks.forms", description="Measure deployment forms.")
    parser.add_argument("--model", required=True, help="Hub id, or folder of a release")
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/forms.json"))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    data = DataSource.of(arguments).test(SIDE)
    pixels = to_pixels(data.images)
    with tempfile.TemporaryDirectory() as folder:
        forms, sizes = build_forms(arguments.model, Path(folder))
        few = pixels[:IMAGES]
        seconds = {}
        for batch_size in BATCH_SIZES:

            @torch.inference_mode()
            def classify(form: Form, batch_size: int = batch_size) -> None:
                for batch in few.split(batch_size):
                    form(batch)

            calls = {name: lambda form=form, classify=classify: classify(form) for name, form in forms.items()}
            with tqdm(total=len(calls) * arguments.rounds, desc=f"timing, batch {batch_size}") as progress:
                seconds[str(batch_size)] = interleaved(calls, arguments.rounds, progress)
        accuracies = {name: accuracy(form, pixels, data.labels) for name, form in forms.items()}
    record = {
        "command": command_again("python -m nula.benchmarks.forms", sys.argv[1:]),
        "weights_sha256": weights_sha256(arguments.model),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine() | {"onnxruntime": onnxruntime.__version__},
        "images": len(few),
        "test_images": len(data.labels),
        "bytes": sizes,
        "seconds": seconds,
        "accuracy": accuracies,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
