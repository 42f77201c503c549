"""`nula push NAME owner/name` assembles a release, checks it, and makes a Hub repository hold it."""

import argparse

from nula.model_card.card import release_tag
from nula.publishing.hub import Target, check_hub, pending_changes, push
from nula.publishing.integrity import PushRefused, check_payload, check_results
from nula.publishing.payload import assemble
from nula.publishing.release import add_release_arguments
from nula.records.release import load_releases, named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula push`."""
    parser.description = "Assemble a release, check it, and make a Hub repository hold it, by one commit and one tag."
    add_release_arguments(parser)
    parser.add_argument("hub_id", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--tag", help="of the commit, such as v1.0.0; the package's version unless given")
    parser.add_argument("--base", help="Hub id of the release it was fine-tuned from, where it is not of this project")
    parser.add_argument("--private", action="store_true", help="where the repository is made by this push")
    parser.add_argument("--remove-others", action="store_true", help="remove files there that are of no release, too")
    parser.add_argument("--dry-run", action="store_true", help="check, and say what the push would change")


def run(arguments: argparse.Namespace) -> None:
    """Check results, token and tag, assemble the payload, check it, and push it or say what a push would change."""
    target = Target(arguments.hub_id, arguments.tag or release_tag(), arguments.private, arguments.remove_others)
    try:
        releases = load_releases(arguments.releases)
        release = named(releases, arguments.name)
        check_results(releases)
        check_hub(target)  # before its card is written
        payload = assemble(releases, release.name, arguments.build, target, arguments.base)
        golden = release.results.folder / "golden.npz"
        if arguments.dry_run:
            check_payload(payload, golden)
            print("\n".join([*pending_changes(payload, target), f"tag: {target.tag}, new"]))
        else:
            print(push(payload, golden, target))
    except (PushRefused, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
