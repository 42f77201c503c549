"""Assemble the exact files of a Hub repository from a release, and push them.

python -m nula.model_card.release v1 [--push owner/name]
"""

import argparse
import shutil
from pathlib import Path

from huggingface_hub import HfApi

from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.card import pictures, render_card, repository_name
from nula.weights import load_model

VERSIONS = ("v0", "v1")


def assemble(version: str, releases: Path, build: Path) -> Path:
    """Write build/nula-cifar10-robust-vN afresh and return it.

    Saving through transformers copies the four code files and names them in config.json and
    preprocessor_config.json, just as `push_to_hub` would.

    Raises:
        FileNotFoundError: `releases` holds no weights of this version.
    """
    release, payload = releases / version, build / repository_name(version)
    if not (release / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{release} holds no model.safetensors; train {version} and copy its weights there first."
        )
    card = render_card(version, releases)
    shutil.rmtree(payload, ignore_errors=True)
    load_model(release).save_pretrained(payload)
    NulaImageProcessor.from_pretrained(release).save_pretrained(payload)
    (payload / "README.md").write_text(card, encoding="utf-8")
    (payload / "figures").mkdir()
    for name in pictures(releases):
        shutil.copy(releases / "figures" / f"{name}.png", payload / "figures")
    return payload


def push(payload: Path, hub_id: str) -> str:
    """Upload `payload` to the model repository `hub_id`, made if need be, in one commit; return the commit's URL."""
    api = HfApi()
    api.create_repo(hub_id, repo_type="model", exist_ok=True)
    return api.upload_folder(repo_id=hub_id, folder_path=payload, commit_message=f"Release {payload.name}").commit_url


def main() -> None:
    parser = argparse.ArgumentParser(description="Assemble the files of a Hub repository, and push them.")
    parser.add_argument("version", choices=VERSIONS)
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--push", metavar="HUB_ID", help="owner/name of the repository to push to")
    arguments = parser.parse_args()
    payload = assemble(arguments.version, arguments.releases, arguments.build)
    for file in sorted(file for file in payload.rglob("*") if file.is_file()):
        print(f"{file.stat().st_size:>10,}  {file}")
    if arguments.push:
        print(push(payload, arguments.push))


if __name__ == "__main__":
    main()
