"""Shared fixtures. No test reaches a network; remote code is cached in a folder of its own."""

import os
import tempfile

# One thread for each of pytest-xdist's workers and of the programs that they start; torch reads this at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_PROXY"] = "127.0.0.1,localhost"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="nula-tests-")  # before the first import of huggingface_hub

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nula.configuration_nula import NulaConfig
from nula.data import Split, load_split
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.publishing.payload import assemble
from nula.records.release import Release, load_releases
from nula.records.weights import weights_sha256
from nula.train.recipe import Recipe

ROOT = Path(__file__).parents[1]
SAMPLE = Path(__file__).parent / "data" / "cifar10_sample"  # the first 320 and 200 images of CIFAR-10's two splits
CAT = ROOT / "examples" / "cat.png"
PAGES = {file: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}  # by file
V2_LIKE = {
    "stem_channels": 6,
    "hidden_sizes": (8, 12, 16),
    "depths": (2, 1, 1),
    "layer_convolutions": 2,
    "contrast_epsilon": 0.1,
}


def unaugmented(recipe: Recipe) -> Recipe:
    """The recipe without any augmentation."""
    shares = (
        "augmented_share",
        "augmix_share",
        "channel_mixing_probability",
        "noise_probability",
        "cutout_probability",
    )
    return replace(recipe, crop_padding=0, flip_probability=0.0, **dict.fromkeys(shares, 0.0))


@pytest.fixture(autouse=True)
def _memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that a test calls within this process must not change how all later tests get their memory."""
    for program in ("nula.train.launch", "nula.evaluation.command"):
        monkeypatch.setattr(f"{program}.keep_memory", lambda device: None)


@pytest.fixture(scope="session")
def train_split() -> Split:
    return load_split(str(SAMPLE), "train")


@pytest.fixture(scope="session")
def test_split() -> Split:
    return load_split(str(SAMPLE), "test")


@pytest.fixture(scope="session")
def pixels(test_split: Split) -> torch.Tensor:
    """The first 16 images of the test sample, (16, 3, 32, 32) in [0, 1]."""
    return test_split.images[:16].permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def tiny_model() -> NulaForImageClassification:
    torch.manual_seed(0)
    config = NulaConfig(stem_channels=4, hidden_sizes=(8, 12, 16), depths=(1, 0, 1))
    return NulaForImageClassification(config).eval()


@pytest.fixture(params=["as v1", "as v2"])
def either_model(request: pytest.FixtureRequest, tiny_model: NulaForImageClassification) -> NulaForImageClassification:
    """A tiny net of each form."""
    return tiny_model if request.param == "as v1" else NulaForImageClassification(NulaConfig(**V2_LIKE)).eval()


@pytest.fixture
def tiny_folder(tiny_model: NulaForImageClassification, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    NulaImageProcessor().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def releases() -> dict[str, Release]:
    """The committed releases. A test that changes what they say copies their folder."""
    return load_releases(ROOT / "releases")


@pytest.fixture(scope="session")
def payload(releases: dict[str, Release], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hub payload of v1, but for the tag that `nula release v1` has in its card."""
    return assemble(releases, "v1", tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def three_releases(test_split: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """The committed releases without their pictures, and a v2 that is there by files alone.

    It is a tiny net, whose table is v1's with the first thousand images answered wrong. It has no study but the noise.
    """
    root = tmp_path_factory.mktemp("three") / "releases"
    shutil.copytree(ROOT / "releases", root, ignore=shutil.ignore_patterns("figures", "*.md"))
    v1 = load_releases(root)["v1"]
    torch.manual_seed(0)
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8, 12, 16), depths=(1, 0, 1))).eval()
    folder = root / "v2"
    model.save_pretrained(folder)
    NulaImageProcessor().save_pretrained(folder)
    own = {"weights_sha256": weights_sha256(folder)}
    for study in ("", "noise"):
        table = v1.results.table(study)
        table.predictions[:, :1000] = (table.labels[:1000] + 1) % 10
        replace(table, provenance=table.provenance | own).save(folder / "results" / study)
    calibration = v1.results.record("calibration")
    calibration = calibration | {"provenance": calibration["provenance"] | own}
    (folder / "results" / "calibration.json").write_text(json.dumps(calibration))
    images = test_split.images[:16].numpy()
    with torch.inference_mode():
        logits = model(**NulaImageProcessor()(images, return_tensors="pt")).logits.numpy()
    np.savez(folder / "results" / "golden.npz", images=images, logits=logits)
    training = v1.training | own | {"initial_weights_sha256": v1.weights_sha256, "parameters": 1234567, "seed": 5}
    (folder / "training.json").write_text(json.dumps(training))
    settings = {"name": "v2", "parent": "v1", "hub_id": "somebody/nula-tiny", "published": None, "color": "#009E73"}
    settings |= {"summary": "v2 is v1 made tiny.", "script": "train/finetune_v1.py", "recipe": {}}
    (folder / "release.json").write_text(json.dumps(settings))
    return load_releases(root)


def call_command(module: ModuleType, *arguments: object) -> None:
    """Carry out a command of `nula` in this process."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))


def run_without_nula(code: str, folder: Path, *arguments: object) -> str:
    """Standard output of `code` in a fresh process that runs in `folder` and cannot import the package `nula`."""
    guard = "import sys\nsys.modules['nula'] = None\n"
    command = [sys.executable, "-c", guard + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launch(script: str, *arguments: object, processes: int = 1) -> subprocess.CompletedProcess:
    """`accelerate launch` a training script on the CPU, on the committed sample."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    command = [*accelerate, f"train/{script}", "--dataset", str(SAMPLE), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def photograph(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth uint8 (height, width, 3) picture whose three channels differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, 255 - rows * 255 // height]
    return np.stack(channels, axis=-1).astype(np.uint8)
