"""What --push_to_hub adds to a training script: measure the run, write its card, push it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nula.data import DataSource
from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.publishing.hub import Target, check_hub, push
from nula.publishing.integrity import PushRefused
from nula.publishing.payload import assemble
from nula.records.provenance import HEAD_NEW
from nula.records.release import FILE, Release, Results
from nula.records.table import Table
from nula.records.weights import weights_sha256

# The variables by which a launcher tells a process of the others.
LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "RANK", "WORLD_SIZE")

TABLE_FILES = ("predictions.npz", "provenance.json", "golden.npz", "calibration.json")  # that measuring a table leaves


@dataclass(frozen=True)
class TableAlone(Results):
    """The table in a folder of results and what was measured with it; no studies, which may be of other weights."""

    def table(self, study: str = "") -> Table | None:
        """Return the stored table of the twenty rows, see `Results.table`; None for a study."""
        return None if study else Results.table(self)

    def record(self, study: str) -> dict[str, Any] | None:
        """Return what calibration.json holds, see `Results.record`; None for a study."""
        return Results.record(self, study) if study == "calibration" else None


@dataclass(frozen=True)
class Evaluation:
    """How a run and what it started from are measured: on which images, and by which device."""

    source: DataSource
    device: torch.device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the images and labels."""
        return self.source.test().fingerprint

    def results_of(self, model: str, *folders: Path) -> TableAlone:
        """Return the table of `model` in the first of `folders` that holds it; else measure it into the last.

        Raises:
            subprocess.CalledProcessError: measuring failed.
        """
        for folder in folders:
            if self._holds_table(model, folder):
                return TableAlone(folder)
        self._measure(model, folders[-1])
        return TableAlone(folders[-1])

    def _holds_table(self, model: str, folder: Path) -> bool:
        """Whether `folder` holds a whole table of these weights on these images."""
        if not all((folder / name).is_file() for name in TABLE_FILES):
            return False
        record = json.loads((folder / "provenance.json").read_text())
        known = (record["weights_sha256"], record["definitions_version"], record["dataset"]["sha256"])
        return known == (weights_sha256(model), DEFINITIONS_VERSION, self.fingerprint)

    def _measure(self, model: str, folder: Path) -> None:
        """Leave the table of `model` in `folder`, measured by one process."""
        command = ["-m", "nula", "evaluate", "table", "--model", model, "--output", str(folder), "--overwrite"]
        for entry in fields(self.source):
            value = getattr(self.source, entry.name)
            command += [] if value == entry.default else [f"--{entry.name}", value]
        command += ["--cpu"] if self.device.type == "cpu" else []
        alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
        subprocess.run([sys.executable, *command], check=True, env=alone)


def check_before(hub_id: str | None, tag: str | None, private: bool) -> None:
    """SystemExit where a push at the end of the run is bound to fail, so that it is known before the run."""
    if hub_id is None:
        raise SystemExit("error: --push_to_hub needs --hub_model_id owner/name.")
    try:
        check_hub(Target(hub_id, tag, private))
    except PushRefused as error:
        raise SystemExit(f"error: --push_to_hub: {error}") from error


def publish(
    output_dir: Path, source: DataSource, target: Target, device: torch.device, parent: str | None = None
) -> str:
    """Push the run in `output_dir`, which holds release.json; return the commit's URL.

    Its card shows its table beside that of `parent`, the folder or Hub id that it was fine-tuned from, unless that
    knows other classes. A table that is there and of these very weights and data is not measured again; no other result
    is shown.

    Raises:
        PushRefused, subprocess.CalledProcessError: the push, or a measurement, failed. Nothing of the run is lost.
    """
    evaluation = Evaluation(source, device)
    results = evaluation.results_of(str(output_dir), output_dir / "results")
    run = replace(Release.load(output_dir), results=results)
    releases = {run.name: run}
    base = None if parent is None else "" if Path(parent).exists() else parent
    if parent is not None and run.training.get("head") != HEAD_NEW:
        measured = evaluation.results_of(parent, Path(parent) / "results", output_dir / "parent_results")
        start = _start(parent, measured, run)
        run = replace(run, parent=start.name)
        releases = {start.name: start, run.name: run}
    payload = assemble(releases, run.name, output_dir / "payload", target, base)
    return push(payload, results.folder / "golden.npz", target)


def _start(model: str, results: Results, run: Release) -> Release:
    """The release in the folder or under the Hub id `model`, which `run` was fine-tuned from."""
    folder = Path(model)
    if (folder / FILE).is_file():
        release = Release.load(folder)
        return replace(release, results=results, name="parent" if release.name == run.name else release.name)
    return Release(
        name=run.parent or folder.name,
        folder=folder,
        results=results,
        parent=None,
        hub_id=model,
        published=None,
        summary="",
        color="#000000",
        script="",
        recipe={},
    )
