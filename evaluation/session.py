"""One call of `nula evaluate`: its models, its data, its processes, and where the results go."""

import argparse
import datetime
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

from nula.data import STRATIFIED, DataSource, Split, part_of
from nula.evaluation.classes import read_classes
from nula.evaluation.classifiers import PixelClassifier, is_hub_id, load_classifier, model_sha256
from nula.evaluation.comparison import comparison_lines
from nula.evaluation.measuring import Measurement, evaluate, partial_folder
from nula.evaluation.output import check_place
from nula.perturbations.suite import DEFINITIONS_VERSION
from nula.records.provenance import command_again, library_versions, public_argument
from nula.records.table import Table, row_title

CHOICE_SEED = 0  # of a stratified choice of images, and of their order
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
    def images(self) -> Split:
        """The --images of the test split that are measured, or all of them, see `data.part_of`.

        A stratified choice comes in random order: a study that cuts its images into parts has every class in each.
        """
        return self._chosen[0]

    @property
    def choice(self) -> dict[str, Any]:
        """What records tell of how `images` were chosen; nothing where all were asked for."""
        return self._chosen[1]

    @property
    def told_images(self) -> str:
        """How many images are measured, in words; of how many, where they are a part."""
        count, total = len(self.images.labels), len(self.test.labels)
        if count == total:
            return f"{count} images"
        how = "of each class its share" if self.choice["choice"] == STRATIFIED else "the first"
        return f"{count} of {total} images, {how}"

    @cached_property
    def _chosen(self) -> tuple[Split, dict[str, Any]]:
        count: int | None = getattr(self.arguments, "images", None)
        return (self.test, {}) if count is None else self.part(self.test, count)

    @staticmethod
    def part(split: Split, count: int) -> tuple[Split, dict[str, Any]]:
        """Return `count` images of a split, see `data.part_of`, and what records tell of the choice."""
        try:
            part, how = part_of(split, count)
        except ValueError as error:
            raise ValueError(f"--images {count}: {error}") from error
        if how != STRATIFIED:
            return part, {"choice": how}
        order = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(CHOICE_SEED))
        return part.take(order), {"choice": how, "seed": CHOICE_SEED}

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
        place, revision = self.arguments.perturb_at, self.revision(model)
        try:
            return load_classifier(model, self.test.names, self.device, classes, place, revision=revision)
        except ValueError as error:
            if model in str(error):
                raise
            raise ValueError(f"{model}: {error}") from error

    def revision(self, model: str) -> str | None:
        """Return the --revision of a model; None for another one, such as --start.

        Raises:
            ValueError: it is given for something that has none, or for several models.
        """
        revision: str | None = self.arguments.revision
        if revision is None or model not in self.arguments.model:
            return None
        if len(self.arguments.model) > 1:
            raise ValueError("--revision is of one Hub id; give one --model.")
        if not is_hub_id(model):
            raise ValueError(f"--revision is of a Hub id; --model {model} is none.")
        return revision

    def provenance(self, model: str, classifier: PixelClassifier, data: Split) -> dict[str, Any]:
        """Return what a result must tell of how it came about, settings aside, which the command tells."""
        revision = self.revision(model)
        return {
            "model": public_argument(model),
            **({} if revision is None else {"revision": revision}),
            "weights_sha256": model_sha256(model, revision),
            "classifier": classifier.record(),
            "dataset": self.source.record(self.source.test_split, data) | {"image_size": data.size} | self.choice,
            "definitions_version": DEFINITIONS_VERSION,
            "command": command_again("nula evaluate", sys.argv[2:]),
            "device": self.device.type,
            "date": datetime.date.today().isoformat(),
            "versions": library_versions(),
        }

    def subjects(self, result: str, recorded: dict[str, Any] | None = None) -> list[Subject]:
        """Return every model with the record of its results; what is wrong with one is told of before any runs.

        Args:
            result: the file in the folder of results that will tell their provenance.
            recorded: what the provenance tells besides.

        Raises:
            OSError, ValueError: a model cannot be loaded, its classes do not match those of the data, or the results
                cannot be left, see `output.check_place`.
        """
        found = []
        for model, output in self.models:
            classifier = self.classifier(model)
            described = self.provenance(model, classifier, self.images) | (recorded or {})
            found.append(Subject(model, classifier, described, output))
        for subject in found:
            check_place(subject.output / result, subject.provenance, self.arguments.overwrite)
        return found

    def measure(
        self,
        rows: Sequence[Measurement],
        part: str = "",
        *,
        recorded: dict[str, Any] | None = None,
        after: AfterTable | None = None,
        print_rows: bool = True,
    ) -> dict[str, Table]:
        """Evaluate every model under `rows`, leave its table in the folder `part` of its results, print and return it.

        Processes share the images. Rows that an interrupted call left are not measured again.

        Args:
            rows: of the table.
            part: folder of the study; "" for the table itself.
            recorded: what the provenance tells besides.
            after: leaves what else is to be in the folder; its table has the logits, which are then kept.
            print_rows: whether every row is printed, and compared between models.
        """
        tables, partial = {}, []
        kept = {"keep_rows": True, "keep_logits": after is not None, "batch_size": self.arguments.batch_size}
        for subject in self.subjects(str(Path(part) / "provenance.json"), recorded):
            classifier, folder = subject.classifier, subject.output / part
            try:
                measured = (classifier, self.images, rows, self.accelerator, subject.provenance)
                table = evaluate(*measured, folder=folder, **kept)
            except (ValueError, RuntimeError) as error:  # of torch, where a model cannot take what it is given
                raise ValueError(f"{subject.model}: {error}") from error
            tables[subject.model] = table
            if self.accelerator.is_main_process:
                if after is not None:
                    after(classifier, table, folder)
                table.save(folder)  # last, as its provenance tells that all is there
                partial.append(partial_folder(folder, classifier, self.images, rows, subject.provenance))
                print(f"\n{subject.model}: {self.told_images}; raw results in {folder}")
                if print_rows:
                    print_accuracies(table)
        if self.accelerator.is_main_process:
            for folder in partial:  # now that no model is left for which the same command would come by these again
                shutil.rmtree(folder)
            for (a, first), (b, second) in combinations(tables.items() if print_rows else (), 2):
                print("\n".join(["", f"{b} against {a}", *comparison_lines(first, second)]))
        return tables


def print_accuracies(table: Table) -> None:
    """Print the accuracy of each row with its 95 % interval."""
    for row in table:
        low, high = row.interval()
        told = f"{row.accuracy:6.2f} %   95 % in {low:.2f} to {high:.2f}"
        print(f"{row_title(row.name, table.of_cifar10):<34} seed {row.seed:<3} {told}")
