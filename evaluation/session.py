"""One call of `nula evaluate`: its models, its data, its processes, and where the results go."""

import argparse
import datetime
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nula.data import DataSource, Split
from nula.evaluation.classes import read_classes
from nula.evaluation.classifiers import PixelClassifier, load_classifier, model_sha256
from nula.evaluation.comparison import comparison_lines
from nula.evaluation.measuring import Measurement, evaluate, partial_folder
from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.records.provenance import command_again, library_versions, public_argument
from nula.records.table import Table, row_title

AfterTable = Callable[[PixelClassifier, Table, Path], None]  # what else is left in the folder of a table


@dataclass(frozen=True)
class Subject:
    """One model that is measured: the classifier, what its results tell of how they came about, and their folder."""

    model: str
    classifier: PixelClassifier
    provenance: dict[str, Any]
    output: Path


@dataclass(frozen=True)
class Session:
    """What the command line asks for, and the processes that carry it out."""

    arguments: argparse.Namespace
    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        """Where models are evaluated."""
        device: torch.device = self.accelerator.device
        return device

    @cached_property
    def source(self) -> DataSource:
        """Where the images come from."""
        return DataSource.of(self.arguments)

    @cached_property
    def test(self) -> Split:
        """The images of the test split, at their own sizes."""
        return self.source.test()

    def first_images(self) -> Split:
        """Return the first --images of the test split, or all where there are fewer."""
        return self.test.first(min(self.arguments.images, len(self.test.labels)))

    @property
    def models(self) -> list[tuple[str, Path]]:
        """Each model, and the folder of its results: --output itself for one, a folder in it for each of several.

        Raises:
            ValueError: two would share a folder.
        """
        models: list[str] = self.arguments.model
        output: Path = self.arguments.output
        names = [Path(model).name.replace(":", ".") for model in models]
        if len(set(names)) < len(names):
            raise ValueError(f"models of the same name would overwrite each other's results: {', '.join(names)}.")
        return [(models[0], output)] if len(models) == 1 else [(m, output / name) for m, name in zip(models, names)]

    def classifier(self, model: str) -> PixelClassifier:
        """Load a model for the classes of the data, as the options say."""
        file: Path | None = self.arguments.classes
        classes = None if file is None else read_classes(file)
        try:
            return load_classifier(model, self.test.names, self.device, classes, self.arguments.perturb_at)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from error

    def provenance(self, model: str, classifier: PixelClassifier, data: Split) -> dict[str, Any]:
        """Return what a result must tell of how it came about, settings aside, which the command tells."""
        return {
            "model": public_argument(model),
            "weights_sha256": model_sha256(model),
            "classifier": classifier.record(),
            "dataset": self.source.record(self.source.test_split, data) | {"image_size": data.size},
            "definitions_version": DEFINITIONS_VERSION,
            "command": command_again("nula evaluate", sys.argv[2:]),
            "device": self.device.type,
            "date": datetime.date.today().isoformat(),
            "versions": library_versions(),
        }

    def subjects(self, data: Split) -> list[Subject]:
        """Return every model with the record of results on `data`; what is wrong with one is told of before any runs.

        Raises:
            OSError, ValueError: a model cannot be loaded, or its classes do not match those of the data.
        """
        loaded = [(model, self.classifier(model), output) for model, output in self.models]
        return [Subject(model, one, self.provenance(model, one, data), output) for model, one, output in loaded]

    def measure(
        self,
        rows: Sequence[Measurement],
        part: str = "",
        *,
        recorded: dict[str, Any] | None = None,
        after: AfterTable | None = None,
    ) -> None:
        """Evaluate every model under `rows`, leave its table in the folder `part` of its results, and print it.

        Processes share the images. Rows that an interrupted call left are not measured again.

        Args:
            rows: of the table.
            part: folder of the study; "" for the table itself.
            recorded: what the provenance tells besides.
            after: leaves what else is to be in the folder; its table has the logits, which are then kept.
        """
        tables, partial = [], []
        keep = after is not None
        for subject in self.subjects(self.test):
            model, classifier, folder = subject.model, subject.classifier, subject.output / part
            described = subject.provenance | (recorded or {})
            kept = {"folder": folder, "keep_rows": True, "keep_logits": keep, "batch_size": self.arguments.batch_size}
            table = evaluate(classifier, self.test, rows, self.accelerator, described, **kept)
            tables.append(table)
            if self.accelerator.is_main_process:
                if after is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    after(classifier, table, folder)
                table.save(folder)  # last, as its provenance tells that all is there
                partial.append(partial_folder(folder, classifier, self.test, rows, described))
                print(f"\n{model}: {len(table.labels)} images; raw results in {folder}")
                print_accuracies(table)
        if self.accelerator.is_main_process:
            for folder in partial:  # now that no model is left for which the same command would come by these again
                shutil.rmtree(folder)
            for (a, first), (b, second) in combinations(zip(self.arguments.model, tables), 2):
                print("\n".join(["", f"{b} against {a}", *comparison_lines(first, second)]))


def print_accuracies(table: Table) -> None:
    """Print the accuracy of each row with its 95 % interval."""
    for row in table:
        low, high = row.interval()
        told = f"{row.accuracy:6.2f} %   95 % in {low:.2f} to {high:.2f}"
        print(f"{row_title(row.name, table.of_cifar10):<34} seed {row.seed:<3} {told}")


def save_json(result: dict[str, Any], provenance: dict[str, Any], file: Path) -> None:
    """Write a study's result behind its provenance, and say where."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"provenance": provenance, **result}, indent=1) + "\n")
    print(f"raw results in {file}")
