"""What a run starts from: a model for the classes of its data, from scratch or from trained weights."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nula.configuration_nula import NulaConfig
from nula.evaluation.classes import places_of
from nula.modeling_nula import NulaForImageClassification
from nula.records.provenance import HEAD_KEPT, HEAD_NEW, HEAD_REORDERED
from nula.records.release import FILE, Release
from nula.records.weights import class_names, load_model, weights_sha256
from nula.runtime.arguments import assigned
from nula.train.net import ARCHITECTURE, label_maps, name_classes, new_head, reorder_head

RGB = 3  # channels of the images that training gives


@dataclass(frozen=True)
class Parent:
    """The trained weights that a run starts from.

    Args:
        option: of the command line, that names them.
        source: folder or Hub id.
        name: of the release that they are.
        weights_sha256: SHA-256 of the weights.
        head: what became of their head: "kept", "reordered" or "new".
    """

    option: str
    source: str
    name: str
    weights_sha256: str
    head: str


@dataclass(frozen=True)
class Start:
    """The model that a run starts with, and where its weights come from; None if they were drawn."""

    model: NulaForImageClassification
    parent: Parent | None = None


MakeStart = Callable[[Sequence[str]], Start]


class Initialization(Protocol):
    """A way to make the model of a run."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its options."""

    def load(self, arguments: argparse.Namespace) -> MakeStart:
        """Read what the arguments name, and return what makes the model for the names of some classes.

        Random numbers come from torch's global generator.

        Raises:
            ValueError, OSError: an option has an impossible value, or names weights that cannot be loaded.
        """


@dataclass(frozen=True)
class FromScratch:
    """Draw all weights; the option --config changes the architecture.

    Args:
        architecture: fields of NulaConfig in which it differs from the default.
    """

    architecture: Mapping[str, Any] = field(default_factory=dict)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add --config."""
        parser.add_argument(
            "--config", nargs="*", default=[], metavar="FIELD=VALUE", help=f"changes of {', '.join(ARCHITECTURE)}"
        )

    def load(self, arguments: argparse.Namespace) -> MakeStart:
        """Read --config, see `Initialization`."""
        fields = {**self.architecture, **assigned(arguments.config, ARCHITECTURE, "--config")}
        NulaConfig(**fields)  # raises before data are read
        return lambda names: Start(NulaForImageClassification(NulaConfig(**fields, **label_maps(names))))


@dataclass(frozen=True)
class FromWeights:
    """Start from the weights of a release.

    Args:
        option: that names them, such as "--v0".
        default: folder or Hub id of the weights unless the option is given.
    """

    option: str
    default: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the option."""
        parser.add_argument(
            self.option, dest="start", default=self.default, help="folder or Hub id of the weights to start from"
        )

    def load(self, arguments: argparse.Namespace) -> MakeStart:
        """Load the weights, see `Initialization`."""
        source: str = arguments.start
        try:
            model, digest = load_model(source), weights_sha256(source)
            channels = model.config.num_channels
            if channels != RGB:
                raise ValueError(f"the model takes images of {channels} channels, must take {RGB} (RGB).")
            return partial(_start_from, model, Parent(self.option, source, release_name(source), digest, HEAD_KEPT))
        except ImportError as error:  # the HTTP client lacks a package, as it does for a SOCKS proxy
            raise OSError(f"{self.option} {source}: {' '.join(str(error).split())}") from error
        except (ValueError, OSError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{self.option} {source}: {error}") from error


def release_name(source: str) -> str:
    """Return the name that the release.json of a folder gives, else the last part of the folder or Hub id."""
    folder = Path(source)
    if (folder / FILE).is_file():
        return Release.load(folder).name
    return folder.resolve().name if folder.is_dir() else source.rpartition("/")[2]


def head_order(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Return the place among `known` of each of `names`, case and separators aside; None unless all are the same."""
    return places_of(names, known) if len(names) == len(known) else None


def _start_from(model: NulaForImageClassification, parent: Parent, names: Sequence[str]) -> Start:
    """Fit the head of `model` to the classes `names`."""
    order = head_order(names, class_names(model))
    if order is None:
        new_head(model, len(names))
        head = HEAD_NEW
    else:
        head = HEAD_KEPT if order == sorted(order) else HEAD_REORDERED
        reorder_head(model, order)
    name_classes(model.config, names)
    return Start(model, replace(parent, head=head))
