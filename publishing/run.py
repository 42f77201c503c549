"""What --push_to_hub adds to a training script: measure the run, write its card, push it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from nula.data import load_split
from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.publishing.hub import PushRefused, check_hub, push
from nula.publishing.payload import assemble
from nula.records.weights import weights_sha256

# The variables by which a launcher tells a process of the others.
LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "RANK", "WORLD_SIZE")


SHOWN = ("predictions.npz", "provenance.json", "golden.npz", "calibration.json")  # of results: the table's alone


def check_before(hub_id: str | None, tag: str | None, private: bool) -> None:
    """SystemExit where a push at the end of the run is bound to fail, so that it is known before the run."""
    if hub_id is None:
        raise SystemExit("error: --push_to_hub needs --hub_model_id owner/name.")
    try:
        check_hub(hub_id, tag, private)
    except PushRefused as error:
        raise SystemExit(f"error: --push_to_hub: {error}") from error


def publish(
    version: str,
    output_dir: Path,
    dataset: str,
    hub_id: str,
    device: torch.device,
    *,
    v0: str | None = None,
    tag: str | None = None,
    private: bool = False,
) -> str:
    """Push what was trained into `output_dir` as `version`, compared with `v0` if given; return the commit's URL.

    A table that is there and of these very weights and data is not measured again; no other result is shown.

    Raises:
        PushRefused, subprocess.CalledProcessError: the push, or a measurement, failed. Nothing of the run is lost.
    """
    results = output_dir / "results"
    if not has_table(str(output_dir), dataset, results):
        measure(str(output_dir), dataset, results, device)
    with tempfile.TemporaryDirectory() as folder:
        releases = Path(folder)
        _link(output_dir, releases / version, (path.name for path in output_dir.iterdir() if path.is_file()))
        _link(results, releases / version / "results", SHOWN)
        if v0 is not None:
            results_v0 = Path(v0) / "results"
            if not has_table(v0, dataset, results_v0):
                results_v0 = output_dir / "v0_results"
            if not has_table(v0, dataset, results_v0):
                measure(v0, dataset, results_v0, device)
            _link(results_v0, releases / "v0" / "results", SHOWN)
        base = None if v0 is None else "" if Path(v0).exists() else v0
        payload = assemble(version, releases, output_dir / "payload", hub_id, base, tag)
        return push(payload, results / "golden.npz", hub_id, private=private, tag=tag)


def _link(source: Path, folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).symlink_to((source / name).resolve())


def has_table(model: str, dataset: str, results: Path) -> bool:
    """Whether `results` holds a whole table of these weights on this data set."""
    if not all((results / name).is_file() for name in SHOWN):
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
