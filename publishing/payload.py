"""Assemble the exact files of a Hub repository from a release."""

import shutil
from pathlib import Path

from PIL import Image

from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.card import pictures, render_card, widget_images
from nula.publishing.hub import Target
from nula.records.release import Releases, named
from nula.records.weights import load_model


def assemble(releases: Releases, name: str, build: Path, target: Target | None = None, base: str | None = None) -> Path:
    """Write the files of the release `name` afresh to a folder in `build`, called as its repository; return the folder.

    Saving through transformers copies the code files and names them in config.json and preprocessor_config.json, just
    as `push_to_hub` would.

    Args:
        releases: by name; the card compares all of them.
        name: of the release.
        build: folder for assembled payloads.
        target: where the payload is to go, which its card says; to the release's own repository unless given.
        base: Hub id of the weights that it was fine-tuned from, for its card, see `render_card`.

    Raises:
        FileNotFoundError: the release holds no weights.
        ValueError: there is no such release, or its card cannot be written.
    """
    release = named(releases, name)
    if not release.has_weights:
        raise FileNotFoundError(
            f"{release.folder} holds no model.safetensors; train {name} and copy its weights there first."
        )
    target = target or Target(release.hub_id)
    card = render_card(releases, name, target.hub_id, base, target.tag)
    payload = build / release.repository
    shutil.rmtree(payload, ignore_errors=True)
    load_model(release.folder).save_pretrained(payload)
    NulaImageProcessor.from_pretrained(release.folder).save_pretrained(payload)
    (payload / "model.safetensors").chmod(0o644)  # which safetensors keeps to its owner
    (payload / "README.md").write_text(card, encoding="utf-8")
    for folder in ("figures", "examples"):
        (payload / folder).mkdir()
    for picture in pictures(releases):
        shutil.copy(picture, payload / "figures")
    images, _ = release.results.golden
    for path, index in widget_images(release).items():
        Image.fromarray(images[index]).save(payload / path)
    return payload
