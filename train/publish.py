"""What --push_to_hub adds to a training script: measure the run, write its card, push it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nula.dataset import load_split
from nula.model_card.push import PushRefused, check_hub, push
from nula.model_card.release import assemble
from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.weights import weights_sha256

# The variables by which a launcher tells a process of the others.
LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "RANK", "WORLD_SIZE")


def check_before(hub_id: str | None) -> None:
    """SystemExit where a push at the end of the run is bound to fail, so that it is known before the run."""
    if hub_id is None:
        raise SystemExit("error: --push_to_hub needs --hub_model_id owner/name.")
    try:
        check_hub(hub_id)
    except PushRefused as error:
        raise SystemExit(f"error: --push_to_hub: {error}") from error


def publish(
    version: str, output_dir: Path, dataset: str, hub_id: str, device: torch.device, v0: str | None = None
) -> str:
    """Push what was trained into `output_dir` as `version`, compared with `v0` if given; return the commit's URL.

    Results that are there and of these very weights and data are not measured again.

    Raises:
        PushRefused, subprocess.CalledProcessError: the push, or a measurement, failed. Nothing of the run is lost.
    """
    results = output_dir / "results"
    if not has_table(str(output_dir), dataset, results):
        measure(str(output_dir), dataset, results, device)
    with tempfile.TemporaryDirectory() as folder:
        releases = Path(folder)
        (releases / version).symlink_to(output_dir.resolve())
        if v0 is not None:
            results_v0 = Path(v0) / "results"
            if not has_table(v0, dataset, results_v0):
                results_v0 = output_dir / "v0_results"
            if not has_table(v0, dataset, results_v0):
                measure(v0, dataset, results_v0, device)
            (releases / "v0").mkdir()
            (releases / "v0" / "results").symlink_to(results_v0.resolve())
        base = None if v0 is None else "" if Path(v0).exists() else v0
        payload = assemble(version, releases, output_dir / "payload", hub_id, base)
        return push(payload, results / "golden.npz", hub_id)


def has_table(model: str, dataset: str, results: Path) -> bool:
    """Whether `results` holds a whole table of these weights on this data set."""
    needed = ("predictions.npz", "provenance.json", "golden.npz", "calibration.json")
    if not all((results / name).is_file() for name in needed):
        return False
    record = json.loads((results / "provenance.json").read_text())
    same = record["weights_sha256"] == weights_sha256(model) and record["definitions_version"] == DEFINITIONS_VERSION
    return same and record["dataset"]["sha256"] == load_split(dataset, "test").fingerprint


def measure(model: str, dataset: str, output: Path, device: torch.device) -> None:
    """Leave the table of `model` in `output`, measured by one process."""
    command = ["-m", "nula.evaluation", "table", "--model", model, "--dataset", dataset, "--output", str(output)]
    command += ["--cpu"] if device.type == "cpu" else []
    alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
    subprocess.run([sys.executable, *command], check=True, env=alone)
