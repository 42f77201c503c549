"""A release in forms that need neither this package nor transformers.

`nula export --model releases/v1 --output build/export` writes nula.pt2 (torch.export) and nula.onnx. Both take
`pixels`, float32 RGB of shape (B, 3, 32, 32) in [0, 1] for any B >= 1, and give `logits` (B, classes); normalisation
is inside.
"""

import argparse
import json
from pathlib import Path

import onnx
import torch

from nula.data import SIDE
from nula.evaluation.classifiers import PixelClassifier, load_classifier


def export_program(classifier: PixelClassifier, file: Path) -> torch.export.ExportedProgram:
    """Write what torch.export.load reads back."""
    pixels = torch.zeros(2, 3, SIDE, SIDE)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(classifier, (pixels,), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    return program


def export_onnx(classifier: PixelClassifier, program: torch.export.ExportedProgram, file: Path) -> None:
    """Write the classifier's program as one ONNX file, with the labels of its logits as JSON in its metadata."""
    names = classifier.model.config.id2label
    labels = {index: names[place] for index, place in enumerate(classifier.order)}
    written = torch.onnx.export(program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False)
    proto = written.model_proto
    onnx.helper.set_model_props(proto, {"labels": json.dumps(labels)})
    onnx.checker.check_model(proto)
    onnx.save(proto, file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="nula export", description="Write a release as .pt2 and .onnx.")
    parser.add_argument("--model", required=True, help="Hub id, or folder of a release")
    parser.add_argument("--output", type=Path, required=True, help="folder for nula.pt2 and nula.onnx")
    arguments = parser.parse_args()
    try:
        classifier = load_classifier(arguments.model, torch.device("cpu"))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    arguments.output.mkdir(parents=True, exist_ok=True)
    program = export_program(classifier, arguments.output / "nula.pt2")
    export_onnx(classifier, program, arguments.output / "nula.onnx")
    for file in ("nula.pt2", "nula.onnx"):
        print(f"{(arguments.output / file).stat().st_size:>12,}  {arguments.output / file}")


if __name__ == "__main__":
    main()
