"""Whether the releases load by remote code on other versions of transformers, each in an environment of its own.

python -m nula.publishing.compatibility writes releases/compatibility.json; it needs a package index.
"""

import argparse
import json
import subprocess
import venv
from pathlib import Path
from typing import Any

from nula.publishing.integrity import PushRefused, check_payload
from nula.publishing.payload import assemble
from nula.records.release import Releases, load_releases

# The oldest that remote code is meant for, the oldest that the package itself takes, and the newest there is.
REQUIREMENTS = ("transformers==4.57.6", "transformers==5.3.0", "transformers>=5.3,<6")
REPORTED = ("transformers", "huggingface_hub", "torch")  # packages whose versions are recorded
LIST = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


def environment(folder: Path, requirement: str) -> str:
    """Make an environment in `folder` with `requirement` and what the payload needs beside it; return its Python."""
    venv.create(folder, clear=True, with_pip=True)  # the newest of everything, not of when it was made
    python = str(folder.resolve() / "bin" / "python")
    packages = [requirement, "torch==2.13.0", "numpy", "pillow"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return python


def differences(releases: Releases, payloads: dict[str, Path], python: str) -> dict[str, float]:
    """Return the largest difference of each payload's logits, loaded by `python`, from those that were measured.

    Raises:
        PushRefused: see `check_payload`.
    """
    return {
        name: check_payload(payload, releases[name].results.folder / "golden.npz", python)
        for name, payload in payloads.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Load the releases on several versions of transformers.")
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    releases = load_releases(arguments.releases)
    payloads = {name: assemble(releases, name, arguments.build) for name in releases}
    found: list[dict[str, Any]] = []
    for index, requirement in enumerate(REQUIREMENTS):
        python = environment(arguments.build / "compatibility" / str(index), requirement)
        listed = subprocess.run([python, "-c", LIST, *REPORTED], check=True, capture_output=True, text=True).stdout
        try:
            difference = differences(releases, payloads, python)
        except PushRefused as refusal:
            raise SystemExit(f"error: {requirement}: {refusal}") from refusal
        for name, largest in difference.items():
            print(f"{listed.strip()}: {releases[name].repository} differs by {largest:.1e}")
        versions = dict(zip(REPORTED, listed.split()))
        found.append({"requirement": requirement, "versions": versions, "difference": difference})
    weights = {name: release.weights_sha256 for name, release in releases.items()}
    record = {"weights_sha256": weights, "environments": found}
    (arguments.releases / "compatibility.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
