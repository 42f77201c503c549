"""`nula release NAME` assembles the payload of a release: the files of its Hub repository."""

import argparse
from pathlib import Path

from nula.model_card.card import release_tag
from nula.publishing.hub import Target
from nula.publishing.integrity import PushRefused, check_results
from nula.publishing.payload import assemble
from nula.records.release import load_releases, named


def add_release_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which release is assembled, and where."""
    parser.add_argument("name", metavar="NAME", help="of the release, such as v1")
    parser.add_argument("--releases", type=Path, default=Path("releases"), help="folder of releases")
    parser.add_argument("--build", type=Path, default=Path("build"), help="folder for assembled payloads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula release`."""
    parser.description = "Assemble the files of a release's Hub repository, and list them."
    add_release_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Check the results of all releases, assemble the payload and list its files with their sizes."""
    try:
        releases = load_releases(arguments.releases)
        release = named(releases, arguments.name)
        check_results(releases)
        payload = assemble(releases, release.name, arguments.build, Target(release.hub_id, release_tag()))
    except (PushRefused, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    for file in sorted(file for file in payload.rglob("*") if file.is_file()):
        print(f"{file.stat().st_size:>10,}  {file}")
