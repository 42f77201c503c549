"""Whether the releases load by remote code on other versions of transformers, each in an environment of its own.

python -m nula.publishing.compatibility writes releases/compatibility.json; it needs a package index.
"""

import argparse
import json
import subprocess
import venv
from pathlib import Path

from nula.model_card.card import repository_name
from nula.model_card.tables import VERSIONS
from nula.publishing.hub import PushRefused, check_payload
from nula.publishing.payload import assemble
from nula.records.weights import weights_sha256

# The oldest that remote code is meant for, the oldest that the package itself takes, and the newest there is.
REQUIREMENTS = ("transformers==4.57.6", "transformers==5.3.0", "transformers>=5.3,<6")
SHOWN = ("transformers", "huggingface_hub", "torch")
LIST = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


def environment(folder: Path, requirement: str) -> str:
    """The interpreter of an environment in `folder` with `requirement` and what the payload needs beside it."""
    venv.create(folder, clear=True, with_pip=True)  # the newest of everything, not of when it was made
    python = str(folder.resolve() / "bin" / "python")
    packages = [requirement, "torch==2.13.0", "numpy", "pillow"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description="Load the releases on several versions of transformers.")
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    payloads = {version: assemble(version, arguments.releases, arguments.build) for version in VERSIONS}
    weights = {version: weights_sha256(arguments.releases / version) for version in VERSIONS}
    found = []
    for index, requirement in enumerate(REQUIREMENTS):
        python = environment(arguments.build / "compatibility" / str(index), requirement)
        listed = subprocess.run([python, "-c", LIST, *SHOWN], check=True, capture_output=True, text=True).stdout
        record = {"requirement": requirement, "versions": dict(zip(SHOWN, listed.split())), "difference": {}}
        for version, payload in payloads.items():
            golden = arguments.releases / version / "results" / "golden.npz"
            try:
                record["difference"][version] = check_payload(payload, golden, python)
            except PushRefused as refusal:
                raise SystemExit(f"error: {requirement}: {refusal}") from refusal
            print(f"{listed.strip()}: {repository_name(version)} differs by {record['difference'][version]:.1e}")
        found.append(record)
    record = {"weights_sha256": weights, "environments": found}
    (arguments.releases / "compatibility.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
