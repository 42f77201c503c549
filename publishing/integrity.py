"""Whether results, pictures and payload are of the very weights that are released. Nothing here reaches a network."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.records.release import Release, Releases, drawn_from, weights_behind

TOLERANCE = 1e-3  # of logits, on another machine than the one that measured them

# In a process of its own, which cannot import this package: what a stranger gets from the payload.
LOAD = """
import sys
sys.modules["nula"] = None
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
payload, golden, tolerance = sys.argv[1], np.load(sys.argv[2]), float(sys.argv[3])
model, processor = (kind.from_pretrained(payload, trust_remote_code=True)
                    for kind in (AutoModelForImageClassification, AutoImageProcessor))
with torch.inference_mode():
    logits = model.eval()(**processor(golden["images"], return_tensors="pt")).logits.numpy()
difference = float(np.abs(logits - golden["logits"]).max())
if not difference <= tolerance:
    sys.exit(f"logits differ by {difference:.3g} from those that were measured, allowed are {tolerance}")
classifier = pipeline("image-classification", model=payload, trust_remote_code=True)
answers = [scores[0]["label"] for scores in classifier(list(golden["images"]), top_k=1)]
if answers != [model.config.id2label[label] for label in logits.argmax(1).tolist()]:
    sys.exit(f"its pipeline answers {answers}, which its logits do not")
print(difference)
"""


class PushRefused(Exception):
    """Why nothing was pushed, and what to do about it."""


def check_results(releases: Releases) -> None:
    """Check that everything that a card of `releases` shows was measured on the weights that lie there.

    Releases without weights are left out.

    Raises:
        PushRefused: something was not, or is missing; the message says what to do.
    """
    for release in releases.values():
        if release.has_weights:
            parent = releases.get(release.parent or "")
            _check_training(release, parent)
            _check_measurements(release, parent)
    _check_pictures(releases)


def _check_training(release: Release, parent: Release | None) -> None:
    """PushRefused unless training.json is of the release's weights, and of a run from its parent's."""
    record = release.training
    if record["weights_sha256"] != release.weights_sha256:
        raise PushRefused(
            f"{release.folder / 'training.json'} is of other weights than those in {release.folder}; copy both."
        )
    if parent is not None and record["initial_weights_sha256"] != parent.weights_sha256:
        raise PushRefused(
            f"{release.folder} was not fine-tuned from the {parent.name} in {parent.folder}; fine-tune {release.name} "
            "from it."
        )


def _check_measurements(release: Release, parent: Release | None) -> None:
    """PushRefused unless there are a table and golden logits, and every result is of the release's weights."""
    folder = release.results.folder
    for name, what in (("predictions.npz", "results"), ("golden.npz", "golden.npz to check the payload against")):
        if not (folder / name).is_file():
            raise PushRefused(f"{folder} holds no {what}; run `{_measuring('table', release)}`.")
    for file in sorted(folder.rglob("*.json")):
        record = json.loads(file.read_text())
        record = record if file.name == "provenance.json" else record.get("provenance", {})
        start = record.get("start_weights_sha256")
        known = start is None or (parent is not None and start == parent.weights_sha256)
        if record.get("weights_sha256") != release.weights_sha256 or not known:
            of_table = file in (folder / "provenance.json", folder / "calibration.json")
            again = _measuring("table" if of_table else "studies", release)
            raise PushRefused(f"{file} was measured on other weights than those in {release.folder}; run `{again}`.")
        if record["definitions_version"] != DEFINITIONS_VERSION:
            raise PushRefused(f"{file} was measured by other definitions than today's; measure it again.")


def _measuring(study: str, release: Release) -> str:
    """The command that measures a release on CIFAR-10 again."""
    return f"nula evaluate {study} --model {release.folder} --output {release.results.folder}"


def _check_pictures(releases: Releases) -> None:
    """PushRefused unless the pictures beside the releases were drawn for their weights."""
    for folder in {release.folder.parent / "figures" for release in releases.values()}:
        for picture in sorted(folder.glob("*.png")):
            if weights_behind(picture) != drawn_from(releases):
                again = f"nula figures --releases {folder.parent}"
                raise PushRefused(f"{picture} was drawn for other weights; run `{again}`.")


def check_payload(payload: Path, golden: Path, python: str = sys.executable) -> float:
    """Return the largest difference of the payload's logits, loaded by its remote code, from those that were measured.

    Args:
        payload: folder of an assembled release.
        golden: file of images and the logits that were measured for them.
        python: the interpreter to load it with.

    Raises:
        PushRefused: the difference is above 0.001, the pipeline gives other answers than the logits, or it does not
            load.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [python, "-c", LOAD, str(payload.resolve()), str(golden.resolve()), str(TOLERANCE)],
            cwd=cache,
            env={**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PushRefused(
            f"the payload {payload} fails when it is loaded by its remote code: {lines[-1]}. Mend the code, or measure "
            "again what has changed."
        )
    return float(done.stdout.splitlines()[-1])
