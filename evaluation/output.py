"""Where results go: that they can be written, and that those of another model or other data are not lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from nula.runtime.output import writing


def check_place(file: Path, provenance: Mapping[str, Any], overwrite: bool) -> None:
    """Check, before anything is measured, that a result with this `provenance` can be left in `file`.

    `file` is a study's JSON file, or the provenance.json of a table. Results of the same weights, images and rows are
    replaced; others are where `overwrite` says so.

    Raises:
        ValueError: the file holds results of something else.
        OSError: its folder cannot be written to.
    """
    of_table = file.name == "provenance.json" and file.with_name("predictions.npz").exists()
    if not overwrite and (file.exists() or of_table):
        known = _stored(file)
        if known is None or _identity(known) != _identity(provenance):
            told = "something unknown" if known is None else _told(known)
            raise ValueError(
                f"{file.parent} holds results of {told}; these are of {_told(provenance)}. Give another --output, or "
                "--overwrite to lose them."
            )
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass


def save_json(result: dict[str, Any], provenance: dict[str, Any], file: Path) -> None:
    """Write a study's result behind its provenance, and say where."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"provenance": provenance, **result}, indent=1) + "\n")
    print(f"raw results in {file}")


def _stored(file: Path) -> dict[str, Any] | None:
    """The provenance in a file of results; None where it cannot be read."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if isinstance(content, dict) and file.name != "provenance.json":
        content = content.get("provenance")
    return content if isinstance(content, dict) else None


def _identity(provenance: Mapping[str, Any]) -> tuple[Any, ...]:
    """What results are of: the weights, or the name of a function, which has none; images; rows of one's own."""
    model = provenance.get("weights_sha256") or provenance.get("model")
    return model, provenance.get("start_weights_sha256"), _images(provenance).get("sha256"), provenance.get("rows")


def _images(provenance: Mapping[str, Any]) -> dict[str, Any]:
    dataset: dict[str, Any] = provenance.get("dataset", {})
    return dataset


def _told(provenance: Mapping[str, Any]) -> str:
    weights, data = provenance.get("weights_sha256"), _images(provenance)
    hashed = f" (weights {weights[:12]})" if weights else ""
    rows = f", rows {provenance['rows']['from']}" if "rows" in provenance else ""
    images = f"{data.get('images', '?')} images of {data.get('name', '?')} {str(data.get('sha256'))[:12]}"
    return f"{provenance.get('model')}{hashed} on {images}{rows}"
