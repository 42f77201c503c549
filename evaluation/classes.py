"""Which of a model's classes are those of the data: by name, by a file, or by their order."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BY_NAME, BY_FILE, IN_ORDER = "by name", "by file", "in order"
UNNAMED = re.compile(r"LABEL_\d+|\d+")  # what transformers calls a class without a name


@dataclass(frozen=True)
class ClassMatch:
    """Where each class of the data is among a model's outputs.

    Args:
        places: for each class of the data the outputs whose probabilities are added; nearly always one.
        outputs: how many the model has.
        how: they were matched: "by name", "by file" or "in order".
    """

    places: tuple[tuple[int, ...], ...]
    outputs: int
    how: str

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (B, outputs) of the model into logits (B, classes) of the data's classes.

        Raises:
            ValueError: there are fewer logits than the model was said to have.
        """
        if logits.ndim != 2 or logits.shape[1] != self.outputs:
            raise ValueError(f"the model gives logits {tuple(logits.shape)}, must be (images, {self.outputs}).")
        if all(len(place) == 1 for place in self.places):
            return logits[:, [place[0] for place in self.places]]
        return torch.stack([logits[:, list(place)].logsumexp(dim=1) for place in self.places], dim=1)

    def record(self) -> dict[str, Any]:
        """Return what a result tells of the match."""
        used = {output for place in self.places for output in place}
        told = {"matched": self.how, "outputs": self.outputs, "outputs_used": len(used)}
        # A file may say something else the next time; names and order do not.
        return told | ({"places": list(map(list, self.places))} if self.how == BY_FILE else {})


def read_classes(file: Path) -> dict[str, Any]:
    """Read a JSON file that maps each class of the data to a class of the model, its index, or a list of these.

    Raises:
        OSError, ValueError: it cannot be read, or is no such file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"--classes {file} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"--classes {file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f'--classes {file}: must be an object such as {{"cat": "tabby", "dog": [207, 208]}}.')
    return content


def places_of(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Return the place of each of `names` among `labels`, case and separators aside; None unless all have one.

    Two labels that differ in nothing else are told apart by their exact spelling.
    """
    exact = {label: place for place, label in enumerate(labels)}
    loose: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        loose.setdefault(_key(label), []).append(place)
    found = []
    for name in names:
        candidates = [exact[name]] if name in exact else loose.get(_key(name), [])
        if len(candidates) != 1:
            return None
        found.append(candidates[0])
    return found if len(set(found)) == len(found) else None


def match_classes(names: Sequence[str], labels: Sequence[str], chosen: Mapping[str, Any] | None = None) -> ClassMatch:
    """Find the data's classes `names` among the model's `labels`.

    They are matched by name or, where `chosen` is given, as it says (see `read_classes`). As many outputs without names
    of their own (LABEL_0, ...) are taken in order, and so are as many classes of data that number them.

    Raises:
        ValueError: classes of the data have no output; the message names them.
    """
    if chosen is not None:
        places = tuple(_chosen_places(name, labels, chosen) for name in names)
        _check_each_once(names, places, labels)
        return ClassMatch(places, len(labels), BY_FILE)
    found = places_of(names, labels)
    if found is not None:
        return ClassMatch(tuple((place,) for place in found), len(labels), BY_NAME)
    if len(labels) == len(names) and any(all(map(UNNAMED.fullmatch, those)) for those in (labels, names)):
        return ClassMatch(tuple((place,) for place in range(len(names))), len(labels), IN_ORDER)
    missing = [name for name in names if places_of([name], labels) is None] or list(names)
    raise ValueError(
        f"the model has no class for {_listed(missing)} of the data; it has {_listed(labels)}. "
        'Give --classes FILE.json, such as {"data class": "model class", ...}.'
    )


def _chosen_places(name: str, labels: Sequence[str], chosen: Mapping[str, Any]) -> tuple[int, ...]:
    if name not in chosen:
        raise ValueError(f"--classes names no class of the model for {name!r}; it has {_listed(list(chosen))}.")
    entries = chosen[name] if isinstance(chosen[name], list) else [chosen[name]]
    places = []
    for entry in entries:
        if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(labels):
            places.append(entry)
            continue
        found = places_of([entry], labels) if isinstance(entry, str) else None
        if found is None:
            raise ValueError(
                f"--classes maps {name!r} to {entry!r}, must be a class of the model or 0 to {len(labels) - 1}; it has "
                f"{_listed(labels)}."
            )
        places += found
    if not places:
        raise ValueError(f"--classes maps {name!r} to no class; give one at least.")
    return tuple(places)


def _check_each_once(names: Sequence[str], places: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    """Raise ValueError where an output is used twice: of two classes with equal logits one could never be answered."""
    users: dict[int, str] = {}
    for name, those in zip(names, places):
        for place in those:
            if place in users:
                raise ValueError(f"--classes uses {labels[place]!r} twice, for {users[place]!r} and for {name!r}.")
            users[place] = name


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
