"""What --push_to_hub adds to a training script: measure the run, write its card, push it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi

from nula.model_card.push import PushRefused, check_hub, push
from nula.model_card.release import assemble
from nula.weights import weights_sha256

# The variables by which a launcher tells a process of the others.
LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "RANK", "WORLD_SIZE")


def check_before(hub_id: str | None) -> None:
    """SystemExit where a push at the end of the run is bound to fail, so that it is known before the run."""
    if hub_id is None:
        raise SystemExit("error: --push_to_hub needs --hub_model_id owner/name.")
    try:
        check_hub(HfApi(), hub_id, tag=None)
    except PushRefused as error:
        raise SystemExit(f"error: --push_to_hub: {error}") from error


def publish(
    version: str, output_dir: Path, dataset: str, hub_id: str, device: torch.device, v0: str | None = None
) -> str:
    """Push what was trained into `output_dir` as `version`, compared with `v0` if given; return the commit's URL.

    Results that are there and of these very weights are not measured again.

    Raises:
        PushRefused, subprocess.CalledProcessError: the push, or a measurement, failed. Nothing of the run is lost.
    """
    measure(str(output_dir), dataset, output_dir / "results", device)
    with tempfile.TemporaryDirectory() as folder:
        releases = Path(folder)
        (releases / version).symlink_to(output_dir.resolve())
        if v0 is not None:
            known = Path(v0) / "results"
            results = known if known.is_dir() else output_dir / "v0_results"
            measure(v0, dataset, results, device)
            (releases / "v0").mkdir()
            (releases / "v0" / "results").symlink_to(results.resolve())
        payload = assemble(version, releases, output_dir / "payload")
        return push(payload, releases / version, hub_id)


def measure(model: str, dataset: str, output: Path, device: torch.device) -> None:
    """The table of `model` in `output`, measured by one process, unless it is there already."""
    record = output / "provenance.json"
    if record.is_file() and json.loads(record.read_text())["weights_sha256"] == weights_sha256(model):
        return
    command = ["-m", "nula.evaluation", "table", "--model", model, "--dataset", dataset, "--output", str(output)]
    command += ["--cpu"] if device.type == "cpu" else []
    alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
    subprocess.run([sys.executable, *command], check=True, env=alone)
