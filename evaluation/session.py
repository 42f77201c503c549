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

from nula.configuration_nula import CIFAR10_LABELS
from nula.data import STRATIFIED, DataSource, Split, part_of
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

    @cached_property
    def chosen(self) -> tuple[Split, str | None]:
        """The --images of the test split that are measured, and how they were chosen; None where all are."""
        count: int | None = getattr(self.arguments, "images", None)
        if count is None or count >= len(self.test.labels):
            return self.test, None
        return part_of(self.test, count)

    @property
    def measured(self) -> Split:
        """The images of the test split that are measured."""
        return self.chosen[0]

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
            options = {"perturb_at": self.arguments.perturb_at, "revision": self.arguments.revision}
            return load_classifier(model, self.test.names, self.device, classes, **options)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from error

    def provenance(self, model: str, classifier: PixelClassifier, data: Split) -> dict[str, Any]:
        """Return what a result must tell of how it came about, settings aside, which the command tells."""
        how = self.chosen[1]
        chosen = {"choice": how} if how == STRATIFIED else {}  # records that do not tell are of the first images
        revision: str | None = self.arguments.revision
        return {
            "model": public_argument(model),
            **({} if revision is None else {"revision": revision}),
            "weights_sha256": model_sha256(model, revision),
            "classifier": classifier.record(),
            "dataset": self.source.record(self.source.test_split, data) | {"image_size": data.size} | chosen,
            "definitions_version": DEFINITIONS_VERSION,
            "command": command_again("nula evaluate", sys.argv[2:]),
            "device": self.device.type,
            "date": datetime.date.today().isoformat(),
            "versions": library_versions(),
        }

    def subjects(self, data: Split) -> list[Subject]:
        """Return every model with the record of results on `data`; what is wrong with one is told of before any runs.

        Raises:
            OSError, ValueError: a model cannot be loaded, its classes do not match those of the data, or its folder
                holds the results of another.
        """
        loaded = [(model, self.classifier(model), output) for model, output in self.models]
        subjects = [Subject(model, one, self.provenance(model, one, data), output) for model, one, output in loaded]
        if not self.arguments.overwrite:
            for subject in subjects:
                check_output(subject)
        return subjects

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
        subjects = self.subjects(self.measured)
        if not self.arguments.overwrite:
            for subject in subjects:
                _check_rows(subject.output / part, rows)
        for subject in subjects:
            model, classifier, folder = subject.model, subject.classifier, subject.output / part
            described = subject.provenance | (recorded or {})
            kept = {"folder": folder, "keep_rows": True, "keep_logits": keep, "batch_size": self.arguments.batch_size}
            table = evaluate(classifier, self.measured, rows, self.accelerator, described, **kept)
            tables.append(table)
            if self.accelerator.is_main_process:
                if after is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    after(classifier, table, folder)
                table.save(folder)  # last, as its provenance tells that all is there
                partial.append(partial_folder(folder, classifier, self.measured, rows, described))
                print(f"\n{model}: {len(table.labels)} images; raw results in {folder}")
                print_accuracies(table)
        if self.accelerator.is_main_process:
            for folder in partial:  # now that no model is left for which the same command would come by these again
                shutil.rmtree(folder)
            for (a, first), (b, second) in combinations(zip(self.arguments.model, tables), 2):
                print("\n".join(["", f"{b} against {a}", *comparison_lines(first, second)]))


def check_output(subject: Subject) -> None:
    """Raise ValueError where the folder of a model's results holds those of another model, or of other classes."""
    for file in sorted([*subject.output.glob("*.json"), *subject.output.glob("*/*.json")]):
        try:
            told = json.loads(file.read_text())
        except (ValueError, OSError):
            continue
        told = told if file.name == "provenance.json" else told.get("provenance") if isinstance(told, dict) else None
        if isinstance(told, dict) and "weights_sha256" in told and _identity(told) != _identity(subject.provenance):
            where = f"{told.get('model')} on {told['dataset'].get('name')} ({file.name})"
            raise ValueError(
                f"{subject.output} holds results of {where}, and these would be of {subject.model}; give another "
                "--output, or --overwrite to replace them."
            )


def _identity(provenance: dict[str, Any]) -> tuple[Any, ...]:
    """What results in one folder have in common: the weights, or the name of a function, and the classes."""
    weights = provenance["weights_sha256"]
    classes = provenance["dataset"].get("classes", CIFAR10_LABELS)
    return provenance["model"] if weights is None else weights, tuple(classes)


def _check_rows(folder: Path, rows: Sequence[Measurement]) -> None:
    """Raise ValueError where a folder holds a table of other rows."""
    if (folder / "predictions.npz").is_file():
        stored = Table.load(folder)
        if (stored.rows, stored.seeds) != (tuple(row.name for row in rows), tuple(row.seed for row in rows)):
            raise ValueError(
                f"{folder} holds a table of {len(stored.rows)} other rows or seeds; give another --output, or "
                "--overwrite to replace it."
            )


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
