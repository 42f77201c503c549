"""Memory that large images take: python -m nula.benchmarks.memory --model FOLDER

Every figure is the highest resident set of a process of its own, less that of one that has loaded the model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from nula.benchmarks.timing import machine
from nula.records.provenance import command_again
from nula.records.weights import weights_sha256
from nula.runtime.arguments import at_least

FILES = 8  # different ones
COUNTS = (0, FILES, 10 * FILES)
KINDS = {"RGBA, PNG": ("RGBA", "png"), "RGB, JPEG": ("RGB", "jpg"), "gray of 16 bits, PNG": ("I;16", "png")}
# resource's figure would count what the process was forked from, too.
CHILD = """
import json, sys, time
from nula.image_processing_nula import NulaImageProcessor
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.records.weights import load_model
model, processor = load_model(sys.argv[1]), NulaImageProcessor.from_pretrained(sys.argv[1])
pipe = NulaImageClassificationPipeline(model=model, image_processor=processor)
began = time.perf_counter()
answers = pipe(sys.argv[2:])
seconds = time.perf_counter() - began
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(json.dumps({
    "bytes": 1024 * int(peak), "seconds": seconds,
    "scores": [answer[0]["score"] for answer in answers[:8]], "labels": [answer[0]["label"] for answer in answers[:8]],
}))
"""


def draw(file: Path, mode: str, side: int, generator: np.random.Generator) -> None:
    """Write a picture of side×side pixels that is neither flat nor noise."""
    coarse = generator.integers(0, 256, (side // 100 + 1, side // 100 + 1, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse, "RGBA").resize((side, side), Image.Resampling.BILINEAR)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(file, **({"compress_level": 1} if file.suffix == ".png" else {"quality": 90}))


def measured(model: str, images: list[str]) -> dict:
    """What a new process takes for the images: bytes, seconds, and the first answers."""
    command = [sys.executable, "-c", CHILD, model, *images]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of an assembled release")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/memory.json"))
    parser.add_argument("--side", type=at_least(1), default=6000, help="pixels (default: %(default)s)")
    arguments = parser.parse_args()
    taken: dict[str, dict[str, dict]] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(KINDS) * len(COUNTS), desc="measuring") as progress:
        for kind, (mode, suffix) in KINDS.items():
            generator = np.random.default_rng(0)
            files = [Path(folder, f"{number}.{suffix}") for number in range(FILES)]
            for file in files:
                draw(file, mode, arguments.side, generator)
            taken[kind] = {}
            for count in COUNTS:
                taken[kind][str(count)] = measured(arguments.model, [str(files[n % FILES]) for n in range(count)])
                progress.update()
    record = {
        "command": command_again("python -m nula.benchmarks.memory", sys.argv[1:]),
        "weights_sha256": weights_sha256(arguments.model),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "side": arguments.side,
        "taken": taken,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
