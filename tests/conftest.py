"""Shared fixtures. No test reaches a network; remote code is cached in a folder of its own."""

import os
import tempfile

# One thread for each of pytest-xdist's workers and of the programs that they start; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_PROXY"] = "127.0.0.1,localhost"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="nula-tests-")  # before the first import of huggingface_hub

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nula.configuration_nula import NulaConfig
from nula.data import Split, load_split
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.publishing.payload import assemble

ROOT = Path(__file__).parents[1]
SAMPLE = Path(__file__).parent / "data" / "cifar10_sample"  # the first 320 and 200 images of CIFAR-10's two splits
CAT = ROOT / "examples" / "cat.png"


@pytest.fixture(autouse=True)
def _memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that a test calls within this process must not change how all later tests get their memory."""
    for program in ("nula.train.launch", "nula.evaluation.__main__"):
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


@pytest.fixture
def tiny_folder(tiny_model: NulaForImageClassification, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    NulaImageProcessor().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hub payload of v1, as `make release VERSION=v1` assembles it."""
    return assemble("v1", ROOT / "releases", tmp_path_factory.mktemp("build"))


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
