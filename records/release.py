"""A release: weights, how they came about, and what was measured of them. Read once from its folder and handed on."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nula.records.table import Table, read_record
from nula.records.weights import weights_sha256

FILE = "release.json"
LOCAL = "local"  # owner in the hub_id of a run that is on no Hub
COLOR = re.compile(r"#[0-9A-Fa-f]{6}")
PNG_KEY = "Weights"  # of what `drawn_from` gives, in a picture's PNG file


@dataclass(frozen=True)
class Results:
    """The results in a folder, as `nula evaluate` leaves them. Each file is read once, when it is first asked for."""

    folder: Path
    _read: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def table(self, study: str = "") -> Table | None:
        """Return the stored table of `study`, or that of the twenty rows; None if it was not measured."""
        key, folder = f"table {study}", self.folder / study
        if key not in self._read:
            self._read[key] = Table.load(folder) if (folder / "predictions.npz").is_file() else None
        found: Table | None = self._read[key]
        return found

    def record(self, study: str) -> dict[str, Any] | None:
        """Return what `study`.json holds, such as that of "sensitivity"; None if it was not measured."""
        key, file = f"record {study}", self.folder / f"{study}.json"
        if key not in self._read:
            self._read[key] = read_record(file) if file.is_file() else None
        found: dict[str, Any] | None = self._read[key]
        return found

    @cached_property
    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """The first images, uint8 (16, H, W, 3), and their logits, by which a copy of the model can be checked."""
        with np.load(self.folder / "golden.npz") as stored:
            return stored["images"], stored["logits"]


@dataclass(frozen=True)
class Training:
    """One training of a release: the record of its run, and what was measured of the weights it gave."""

    folder: Path
    results: Results

    @cached_property
    def record(self) -> dict[str, Any]:
        """What training.json holds."""
        record: dict[str, Any] = json.loads((self.folder / "training.json").read_text())
        return record


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of the model, as its folder and the file release.json in it say.

    Args:
        name: of the release, such as "v1"; in `releases/` also of its folder.
        folder: holds weights, configuration, processor, training.json and, unless said otherwise, results.
        results: what was measured of the weights.
        parent: name of the release that it was fine-tuned from, None if it was trained from scratch.
        hub_id: owner/name of its repository on the Hub.
        published: column of model_card/published_table.csv that it is compared with, None if there is none.
        summary: sentences for its card.
        color: #RRGGBB, of its marks in every picture.
        script: that trains it.
        recipe: settings that it is trained by, frozen: the recipe in the code may move on.
    """

    name: str
    folder: Path
    results: Results
    parent: str | None
    hub_id: str
    published: str | None
    summary: str
    color: str
    script: str
    recipe: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, results: Path | None = None) -> "Release":
        """Read `folder`/release.json; `results` lie in `folder`/results unless given.

        Raises:
            FileNotFoundError: the folder holds no release.json.
            ValueError: the file lacks a field, has one too many, or one has an impossible value.
        """
        file = folder / FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file}: must be an object, is {content!r}.")
        expected = {entry.name for entry in fields(cls)} - {"folder", "results"}
        if set(content) != expected:
            missing, unknown = sorted(expected - set(content)), sorted(set(content) - expected)
            raise ValueError(f"{file}: must have the fields {sorted(expected)}; missing {missing}, unknown {unknown}.")
        release = cls(folder=folder, results=Results(results or folder / "results"), **content)
        for name in ("name", "hub_id", "summary", "color", "script"):
            if not isinstance(content[name], str) or not content[name]:
                raise ValueError(f"{file}: {name} is {content[name]!r}, must be a text.")
        for name in ("parent", "published"):
            if content[name] is not None and not isinstance(content[name], str):
                raise ValueError(f"{file}: {name} is {content[name]!r}, must be a text or null.")
        if not COLOR.fullmatch(release.color):
            raise ValueError(f"{file}: color is {release.color!r}, must be #RRGGBB.")
        if not isinstance(release.recipe, dict):
            raise ValueError(f"{file}: recipe is {release.recipe!r}, must be an object of settings.")
        return release

    def save(self) -> None:
        """Write release.json to the folder."""
        content = {e.name: getattr(self, e.name) for e in fields(self) if e.name not in ("folder", "results")}
        (self.folder / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def repository(self) -> str:
        """The name of its repository without the owner; also of its assembled payload."""
        return self.hub_id.rpartition("/")[2]

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights in the folder."""
        return weights_sha256(self.folder)

    @property
    def has_weights(self) -> bool:
        """Whether the folder holds weights."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def training(self) -> dict[str, Any]:
        """The record of the training that gave the weights."""
        return self.trainings[0].record

    @cached_property
    def trainings(self) -> list[Training]:
        """Every training of this release: that of the weights first, then those of other seeds."""
        seeds = sorted((self.folder / "seeds").glob("*"))
        return [Training(self.folder, self.results), *(Training(seed, Results(seed / "results")) for seed in seeds)]

    @cached_property
    def processor(self) -> dict[str, Any]:
        """What preprocessor_config.json holds."""
        settings: dict[str, Any] = json.loads((self.folder / "preprocessor_config.json").read_text())
        return settings

    @cached_property
    def notes(self) -> str:
        """How the settings of its training came about, in the words of notes.md; "" if there is none."""
        file = self.folder / "notes.md"
        return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


Releases = Mapping[str, Release]


def load_releases(root: Path) -> dict[str, Release]:
    """Read every release in `root`, a folder each, by name: parents before what was fine-tuned from them.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a release.json is wrong, has another name than its folder, or names a parent that is not there.
    """
    found = {}
    for file in sorted(root.glob(f"*/{FILE}")):
        release = Release.load(file.parent)
        if release.name != file.parent.name:
            raise ValueError(
                f"{file}: name is {release.name!r}, must be that of its folder, {file.parent.name!r}; edit it."
            )
        found[release.name] = release
    if not found:
        raise FileNotFoundError(f"{root} holds no release; a release is a folder with a {FILE} in it.")
    ordered: dict[str, Release] = {}
    while len(ordered) < len(found):
        ready = [r for r in found.values() if r.name not in ordered and (r.parent is None or r.parent in ordered)]
        if not ready:
            lost = next(release for release in found.values() if release.name not in ordered)
            raise ValueError(
                f"{lost.folder / FILE}: parent is {lost.parent!r}, must be null or another release in {root} that was "
                f"not itself fine-tuned from this one; there are {', '.join(found)}."
            )
        ordered[ready[0].name] = ready[0]
    return ordered


def named(releases: Releases, name: str) -> Release:
    """Return the release called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in releases:
        raise ValueError(f"there is no release {name!r}; there are {', '.join(releases)}.")
    return releases[name]


def drawn_from(releases: Releases) -> str:
    """Return what a picture of `releases` says of the weights behind it: the hashes in their records of training."""
    return " ".join(release.training["weights_sha256"] for release in releases.values())


def weights_behind(picture: Path) -> str | None:
    """Return what a PNG file says of the weights that it was drawn for, as `drawn_from` tells it."""
    with Image.open(picture) as image:
        told: str | None = image.info.get(PNG_KEY)
    return told


def pairs(releases: Releases) -> list[tuple[Release, Release]]:
    """Return each release that was fine-tuned from another one of `releases`, behind its parent."""
    return [(releases[r.parent], r) for r in releases.values() if r.parent is not None and r.parent in releases]
