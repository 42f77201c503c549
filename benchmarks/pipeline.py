"""The pipeline beside the bare model and the stock pipeline, in one run.

python -m nula.benchmarks.pipeline --model build/nula-cifar10-robust-v1 writes benchmarks/pipeline.json, of which
python -m nula.benchmarks.tables makes benchmarks/README.md.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import ImageClassificationPipeline, ViTImageProcessor, ViTImageProcessorPil
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import is_torchvision_available

from nula.benchmarks.timing import Candidates, interleaved, machine
from nula.data import SIDE, DataSource, add_data_arguments
from nula.image_processing_nula import IMAGE_MEAN, IMAGE_STD, NulaImageProcessor
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.records.provenance import command_again
from nula.records.weights import load_model, weights_sha256

BATCH_SIZES = (1, 64, 256)
IMAGES = 256  # classified by each candidate in each round
PHOTOGRAPH = 256  # pixels a side of the JPEG files
BARE, OURS, OUR_PROCESSOR = "bare model", "NULA's pipeline", "stock pipeline, our processor"
# With transformers' own processor, on Pillow and, where that is installed, on torchvision.
STOCK = {"stock pipeline, Pillow": ViTImageProcessorPil}
if is_torchvision_available():
    STOCK["stock pipeline, torchvision"] = ViTImageProcessor

# To the first answer in a new process, from starting Python.
START_UP = {
    OURS: """
from transformers import pipeline
pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)(sys.argv[2])
""",
    "stock pipeline": """
from transformers import AutoModelForImageClassification, ImageClassificationPipeline, ViTImageProcessor
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = ViTImageProcessor(size={"height": 32, "width": 32})
ImageClassificationPipeline(model=model, image_processor=processor)(sys.argv[2])
""",
    "importing torch and transformers": "import torch, transformers",
}


def inputs(images: np.ndarray, folder: Path) -> dict[str, object]:
    """The same uint8 images (N, 32, 32, 3) as every kind of input; JPEG files, of photographs' size, in `folder`."""
    pictures = [Image.fromarray(image) for image in images]
    files = []
    for number, picture in enumerate(pictures):
        files.append(str(folder / f"{number:04d}.jpg"))
        picture.resize((PHOTOGRAPH, PHOTOGRAPH), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    column = datasets.Dataset.from_dict({"img": encoded}).cast_column("img", datasets.Image())
    return {
        "tensors": list(torch.from_numpy(images).permute(0, 3, 1, 2)),
        "arrays": list(images),
        "PIL images": pictures,
        "JPEG files": files,
        "data set": KeyDataset(column, "img"),
    }


def pipelines(folder: str) -> dict[str, ImageClassificationPipeline]:
    """Every pipeline by name, each with a model of its own, as ours lays it out anew."""
    processors = {OUR_PROCESSOR: NulaImageProcessor()}
    for name, processor in STOCK.items():
        processors[name] = processor(size={"height": 32, "width": 32}, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    pipes = {OURS: NulaImageClassificationPipeline(model=load_model(folder), image_processor=NulaImageProcessor())}
    for name, processor in processors.items():
        pipes[name] = ImageClassificationPipeline(model=load_model(folder), image_processor=processor)
    return pipes


def candidates(
    model: torch.nn.Module,
    pipes: dict[str, ImageClassificationPipeline],
    images: object,
    pixels: torch.Tensor,
    batch_size: int,
) -> Candidates:
    """What classifies `images`; the bare `model` has them as `pixels` (N, 3, 32, 32), ready."""

    def bare() -> None:
        with torch.inference_mode():
            for batch in pixels.split(batch_size):
                model(pixel_values=batch)

    called = {name: lambda pipe=pipe: list(pipe(images, batch_size=batch_size)) for name, pipe in pipes.items()}
    return {BARE: bare, **called}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.benchmarks.pipeline", description="Time the pipeline.")
    parser.add_argument("--model", required=True, help="folder of an assembled release")
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/pipeline.json"))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    images = DataSource.of(arguments).test(SIDE).first(IMAGES).images.numpy()
    pixels = NulaImageProcessor()(images, return_tensors="pt").pixel_values
    model = load_model(arguments.model).to(memory_format=torch.channels_last)
    pipes, seconds = pipelines(arguments.model), {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = inputs(images, Path(folder))
        with tqdm(total=(3 + len(STOCK)) * arguments.rounds * len(BATCH_SIZES) * len(kinds), desc="timing") as progress:
            for batch_size in BATCH_SIZES:
                seconds[str(batch_size)] = {
                    kind: interleaved(candidates(model, pipes, values, pixels, batch_size), arguments.rounds, progress)
                    for kind, values in kinds.items()
                }

        def start(code: str) -> None:
            command = [sys.executable, "-c", f"import sys\n{code}", arguments.model, f"{folder}/0000.jpg"]
            subprocess.run(command, check=True, capture_output=True)

        started = interleaved({name: lambda code=code: start(code) for name, code in START_UP.items()}, 5)
    record = {
        "command": command_again("python -m nula.benchmarks.pipeline", sys.argv[1:]),
        "weights_sha256": weights_sha256(arguments.model),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine() | ({"torchvision": version("torchvision")} if is_torchvision_available() else {}),
        "images": len(images),
        "seconds": seconds,
        "start_up_seconds": started,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
