"""`nula export` writes a release in forms that need neither this package nor transformers.

`nula export --model releases/v1 --output build/export` writes nula.pt2 (torch.export) and nula.onnx. Both take
`pixels`, float32 RGB of shape (B, 3, H, W) in [0, 1] for any B >= 1 at the model's size, 32x32 unless it was trained at
another, and give `logits` (B, classes) in the model's order of classes; normalisation is inside.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from transformers.utils.logging import disable_progress_bar

from nula.evaluation.classifiers import PixelClassifier, load_classifier


def export_program(classifier: PixelClassifier, file: Path) -> torch.export.ExportedProgram:
    """Write what torch.export.load reads back."""
    pixels = torch.zeros(2, 3, *classifier.size)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(classifier, (pixels,), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    return program


def export_onnx(program: torch.export.ExportedProgram, names: Sequence[str], file: Path) -> None:
    """Write a program as one ONNX file, with the names of its logits as JSON in its metadata."""
    written = torch.onnx.export(program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False)
    proto = written.model_proto
    onnx.helper.set_model_props(proto, {"labels": json.dumps(dict(enumerate(names)))})
    onnx.checker.check_model(proto)
    onnx.save(proto, file)


def write_forms(model: str, folder: Path) -> PixelClassifier:
    """Write nula.pt2 and nula.onnx of a model to `folder`, and return the model.

    Raises:
        OSError, ValueError: the model cannot be loaded, or the files cannot be written.
    """
    classifier = load_classifier(model, None, torch.device("cpu"))
    if not classifier.differentiable or classifier.labels is None:
        raise ValueError(f"{model} ({classifier.kind}) is no torch model; give a folder or Hub id of weights.")
    folder.mkdir(parents=True, exist_ok=True)
    program = export_program(classifier, folder / "nula.pt2")
    export_onnx(program, classifier.labels, folder / "nula.onnx")
    return classifier


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hold back what torch's exporters say of their own insides and of packages that the model does not need."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|copyreg)(\.|$)")
            yield
    finally:
        log.setLevel(level)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula export`."""
    parser.add_argument("--model", required=True, help="Hub id, or folder of a release")
    parser.add_argument("--output", type=Path, required=True, help="folder for nula.pt2 and nula.onnx")


def run(arguments: argparse.Namespace) -> None:
    """Write both forms and print their sizes."""
    disable_progress_bar()  # of loading the weights
    try:
        with quiet_exporter():
            write_forms(arguments.model, arguments.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    for name in ("nula.pt2", "nula.onnx"):
        file = arguments.output / name
        print(f"{file.stat().st_size:>12,}  {file}")
