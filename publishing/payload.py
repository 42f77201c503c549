"""Assemble the exact files of a Hub repository from a release, and push them.

python -m nula.publishing.payload v1 [--push owner/name [--tag v1.0.0] [--base owner/v0] [--private] [--dry-run]]
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.card import pictures, release_tag, render_card, repository_name, widget_images
from nula.model_card.tables import VERSIONS
from nula.publishing.hub import PushRefused, changes, check_hub, check_payload, check_results, push
from nula.records.weights import load_model


def assemble(
    version: str,
    releases: Path,
    build: Path,
    hub_id: str | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> Path:
    """Write build/nula-cifar10-robust-vN afresh and return it; `hub_id`, `base` and `revision` are for its card.

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
    card = render_card(version, releases, hub_id, base, revision)
    shutil.rmtree(payload, ignore_errors=True)
    load_model(release).save_pretrained(payload)
    NulaImageProcessor.from_pretrained(release).save_pretrained(payload)
    (payload / "README.md").write_text(card, encoding="utf-8")
    (payload / "figures").mkdir()
    for name in pictures(releases):
        shutil.copy(releases / "figures" / f"{name}.png", payload / "figures")
    (payload / "model.safetensors").chmod(0o644)  # which safetensors keeps to its owner
    (payload / "examples").mkdir()
    with np.load(release / "results" / "golden.npz") as golden:
        for path, index in widget_images(version, releases).items():
            Image.fromarray(golden["images"][index]).save(payload / path)
    return payload


def main() -> None:
    parser = argparse.ArgumentParser(description="Assemble the files of a Hub repository, and push them.")
    parser.add_argument("version", choices=VERSIONS)
    parser.add_argument("--releases", type=Path, default=Path("releases"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--push", metavar="HUB_ID", help="owner/name of the repository to push to")
    parser.add_argument("--tag", help="of the commit, such as v1.0.0; the package's version unless given")
    parser.add_argument("--base", help="Hub id of v0, where it is not this project's; for v1's card")
    parser.add_argument("--private", action="store_true", help="where the repository is made by this push")
    parser.add_argument("--dry-run", action="store_true", help="check, and say what the push would change")
    arguments = parser.parse_args()
    if arguments.push is None and (arguments.private or arguments.dry_run):
        parser.error("--private and --dry-run are of a --push")
    tag = arguments.tag or release_tag()
    try:
        check_results(arguments.releases)
        if arguments.push is not None:  # before its card is written
            check_hub(arguments.push, tag, arguments.private)
        version, releases = arguments.version, arguments.releases
        payload = assemble(version, releases, arguments.build, arguments.push, arguments.base, tag)
        golden = releases / version / "results" / "golden.npz"
        if arguments.push is None:
            for file in sorted(file for file in payload.rglob("*") if file.is_file()):
                print(f"{file.stat().st_size:>10,}  {file}")
        elif arguments.dry_run:
            check_payload(payload, golden)
            print("\n".join([*changes(payload, arguments.push, arguments.private), f"tag: {tag}, new"]))
        else:
            print(push(payload, golden, arguments.push, private=arguments.private, tag=tag))
    except (PushRefused, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
