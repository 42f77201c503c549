"""`nula app` shows all releases side by side in a browser: the app of the Hugging Face Space, with local payloads."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from huggingface_hub import SpaceCard

from nula.model_card.card import release_tag
from nula.publishing.payload import assemble
from nula.records.release import Releases, load_releases
from nula.runtime.arguments import at_least

CHECKOUT = Path(__file__).parents[1]
SPACE_FILES = ("app.py", "README.md", "requirements.txt")
OPERATOR_FILES = ("__init__.py", "appearance.py", "sampling.py")  # of perturbations/, which the app imports


def assemble_space(releases: Releases, folder: Path) -> None:
    """Write the files of a Hugging Face Space of `releases` afresh to `folder`.

    Its models.json names their repositories on the Hub, each at the tag of this version of the package: their code runs
    in the Space, so that what a later push brings is not taken unseen.
    """
    shutil.rmtree(folder, ignore_errors=True)
    operators = folder / "nula" / "perturbations"
    operators.mkdir(parents=True)
    (folder / "nula" / "__init__.py").touch()
    for name in OPERATOR_FILES:
        shutil.copy(CHECKOUT / "perturbations" / name, operators)
    for name in SPACE_FILES:
        shutil.copy(CHECKOUT / "space" / name, folder)
    shutil.copytree(CHECKOUT / "examples", folder / "examples")
    models = {name: {"model": release.hub_id, "revision": release_tag()} for name, release in releases.items()}
    (folder / "models.json").write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
    card = SpaceCard.load(folder / "README.md")
    card.data.models = [release.hub_id for release in releases.values()]
    card.save(folder / "README.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula app`."""
    parser.description = "Show all releases side by side in a browser, under sliders for perturbations."
    parser.add_argument("--releases", type=Path, default=Path("releases"), help="folder of releases")
    parser.add_argument("--build", type=Path, default=Path("build"), help="folder for payloads and the Space's files")
    parser.add_argument(
        "--port", type=at_least(1, 2**16 - 1), default=7860, help="of this machine (default: %(default)s)"
    )
    parser.add_argument("--assemble-only", action="store_true", help="leave the Space's files in BUILD/space, no more")


def run(arguments: argparse.Namespace) -> int:
    """Assemble the Space and, unless told otherwise, the payloads of all releases, and start the app with these."""
    build: Path = arguments.build
    if build.exists() and not build.is_dir():
        raise SystemExit(f"error: --build {build} is a file; name a folder.")
    try:
        releases = load_releases(arguments.releases)
        assemble_space(releases, build / "space")
        if arguments.assemble_only:
            return 0
        models = [f"{name}={assemble(releases, name, build)}" for name in releases]
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    # In a process of its own, which finds the Space's copy of nula.perturbations as the Hub's machine does.
    command = [sys.executable, str(build / "space" / "app.py"), *models, "--port", str(arguments.port)]
    return subprocess.run(command).returncode
