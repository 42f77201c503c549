"""Odd models, rows, images and results that are to be measured or compared, for the table inputs.md."""

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from nula.cli import main
from nula.configuration_nula import NulaConfig
from nula.data import Split
from nula.evaluation.classifiers import load_classifier, of_function
from nula.evaluation.importing import imported_rows
from nula.evaluation.measuring import Measurement, class_indices, evaluate
from nula.evaluation.output import check_place
from nula.evaluation.session import Session
from nula.evaluation.studies.corruptions import corruption_rows, mean_lines
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.perturbations.corruptions import CORRUPTIONS, EXTRA, STANDARD
from nula.perturbations.suite import ROWS, Perturbation
from nula.records.table import Table

TITLE = "What evaluation gives"
Case = Callable[[], str]
CLASSES = ("cat", "dog")
CPU = torch.device("cpu")


def small_split(classes: int = 2, count: int = 6) -> Split:
    images = torch.full((count, 32, 32, 3), 128, dtype=torch.uint8)
    return Split.of(images, torch.arange(count) % classes, tuple(f"class {index}" for index in range(classes)))


def answered(function: Callable[[torch.Tensor], Any], apply: Any = lambda x, g: x, classes: int = 2) -> str:
    """Measure a function under one row."""
    rows = [Measurement(name="mine", apply=apply)]
    table = evaluate(of_function(function, classes), small_split(classes), rows, Accelerator(cpu=True), {})
    return f"answers {table.predictions[0].tolist()} of {table.predictions.dtype}"


def brightness(pixels: torch.Tensor, classes: int = 2) -> torch.Tensor:
    return pixels.mean(dim=(1, 2, 3)).unsqueeze(1) * torch.arange(classes)


@contextlib.contextmanager
def module(**contents: Any) -> Any:
    """A module called `mine`."""
    with pytest.MonkeyPatch.context() as patch:
        made = ModuleType("mine")
        vars(made).update(contents)
        patch.setitem(sys.modules, "mine", made)
        yield


def of_models(folder: Path) -> dict[str, Case]:
    """Models in `folder`, and Python functions."""
    torch.manual_seed(0)
    config = NulaConfig(stem_channels=4, hidden_sizes=(8, 12), depths=(1, 0), id2label=dict(enumerate(CLASSES)))
    for name in ("whole", "spare", "missing", "cut", "no weights", "own code"):
        NulaForImageClassification(config).save_pretrained(folder / name)
        NulaImageProcessor().save_pretrained(folder / name)
    weights = load_file(folder / "whole" / "model.safetensors")
    save_file(weights | {"more": torch.zeros(1)}, folder / "spare" / "model.safetensors", {"format": "pt"})
    less = {name: tensor for name, tensor in weights.items() if name != "classifier.bias"}
    save_file(less, folder / "missing" / "model.safetensors", {"format": "pt"})
    whole = (folder / "whole" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(whole[:1000])
    (folder / "no weights" / "model.safetensors").unlink()
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.M"}}
    (folder / "own code" / "config.json").write_text(json.dumps(own))
    (folder / "own code" / "mine.py").write_text("raise SystemExit('this code has run')")
    (folder / "none.onnx").write_bytes(b"no model")

    def loaded(name: str, classes: tuple[str, ...] = CLASSES) -> str:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            classifier = load_classifier(name, classes, CPU)
        told = "".join(f"; warning: {warning.message}" for warning in warned)
        return f"{classifier.kind}, classes matched {classifier.classes.how}{told}"

    def of_value(value: Any) -> str:
        with module(net=value):
            return loaded("mine:net")

    def failing(pixels: torch.Tensor) -> torch.Tensor:
        raise KeyError("layer")

    return {
        "model that is whole": partial(loaded, str(folder / "whole")),
        "model whose weights hold more": partial(loaded, str(folder / "spare")),
        "model whose weights lack a tensor": partial(loaded, str(folder / "missing")),
        "model whose weights are cut short": partial(loaded, str(folder / "cut")),
        "model without weights": partial(loaded, str(folder / "no weights")),
        "model that needs code of its own": partial(loaded, str(folder / "own code")),
        "model of other classes": partial(loaded, str(folder / "whole"), ("cat", "horse")),
        "ONNX file that is none": partial(loaded, str(folder / "none.onnx")),
        "ONNX file that is not there": partial(loaded, str(folder / "nothing.onnx")),
        "function of a module that is not there": partial(loaded, "not_there:net"),
        "function that is a number": partial(of_value, 3),
        "function that is a name of nothing": partial(loaded, "json:nothing"),
        "function without names of its classes": partial(of_value, brightness),
        "function that raises": partial(answered, failing),
        "function that gives a list": partial(answered, lambda pixels: [[0.0, 1.0]] * len(pixels)),
        "function that gives one number an image": partial(answered, lambda pixels: pixels.mean(dim=(1, 2, 3))),
        "function that gives the logits of one image": partial(answered, lambda pixels: brightness(pixels)[:1]),
        "function that gives too many classes": partial(answered, partial(brightness, classes=3)),
        "function that gives NaN": partial(answered, lambda pixels: brightness(pixels) * torch.nan),
        "function of 300 classes": partial(answered, partial(brightness, classes=300), classes=300),
    }


def of_rows() -> dict[str, Case]:
    """Rows of one's own."""

    def taken(value: Any, name: str = "mine:MINE") -> str:
        with module(MINE=value):
            return f"rows {', '.join(row.name for row in imported_rows(name))}"

    mine = Perturbation("mine", "nothing", lambda x, g: x)
    return {
        "--rows of one's own": partial(taken, (mine,)),
        "--rows that are some of the project's": partial(taken, ROWS[:2]),
        "--rows that are none": partial(taken, ()),
        "--rows that are a number": partial(taken, 7),
        "--rows with a function in them": partial(taken, (mine, brightness)),
        "--rows with a name twice": partial(taken, (mine, mine)),
        "--rows with another row by a published name": partial(taken, (Perturbation(ROWS[1].name, "x", mine.apply),)),
        "--rows without a definition": partial(taken, (Perturbation("mine", None, mine.apply),)),
        "--rows that is a file": partial(taken, (mine,), "mine.py"),
        "--rows of a name that is not there": partial(taken, (mine,), "mine:OURS"),
        "row of one argument": partial(answered, brightness, lambda x: x),
        "row that gives half the images": partial(answered, brightness, lambda x, g: x[:3]),
        "row that gives another size": partial(answered, brightness, lambda x, g: x[..., ::2]),
        "row that gives an array": partial(answered, brightness, lambda x, g: x.numpy()),
        "row that leaves [0, 1]": partial(answered, brightness, lambda x, g: x + 1),
        "row that gives NaN": partial(answered, brightness, lambda x, g: x * torch.nan),
    }


def of_images() -> dict[str, Case]:
    """A part of the images."""

    def chosen(labels: list[int], count: int) -> str:
        images = torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8)
        split = Split.of(images, torch.tensor(labels), tuple(map(str, range(max(labels) + 1))))
        part, record = Session.part(split, count)
        return f"{record}: of each class {part.labels.bincount().tolist()}"

    by_class = [0] * 60 + [1] * 30 + [2] * 10
    return {
        "--images 20 of images sorted by class": partial(chosen, by_class, 20),
        "--images 20 of mixed images": partial(chosen, [0, 1] * 50, 20),
        "--images 3 of a class with few": partial(chosen, by_class, 3),
        "--images of more than there are": partial(chosen, [0, 1] * 5, 100),
        "a class index beyond the classes": lambda: str(class_indices(np.array([0, 300]), 256)),
        "256 classes": lambda: str(class_indices(np.array([0, 255]), 256).dtype),
        "257 classes": lambda: str(class_indices(np.array([0, 256]), 257).dtype),
    }


def of_results(folder: Path) -> dict[str, Case]:
    """Results that are there, damaged, of something else, or cannot be left."""
    known = {"model": "a", "weights_sha256": "0" * 64, "dataset": {"name": "data", "images": 6, "sha256": "1" * 64}}
    labels = np.array([0, 1, 1], np.uint8)

    def table(name: str, **provenance: Any) -> Path:
        record = known | provenance
        Table(rows=("mine",), seeds=(0,), predictions=labels[None], labels=labels, provenance=record).save(
            folder / name
        )
        return folder / name

    def left(name: str, overwrite: bool = False, **changes: Any) -> str:
        check_place(table(name) / "provenance.json", known | changes, overwrite)
        return "it is replaced"

    def damaged(name: str, file: str, content: bytes) -> str:
        (table(name) / file).write_bytes(content)
        return f"{len(Table.load(folder / name).labels)} images"

    def unknown() -> str:
        (table("unknown") / "provenance.json").unlink()
        check_place(folder / "unknown" / "provenance.json", known, False)
        return "it is replaced"

    def no_folder() -> str:
        (folder / "file").write_bytes(b"")
        check_place(folder / "file" / "provenance.json", known, False)
        return "it is written"

    def compared(name: str, **changes: Any) -> str:
        first, second = Table.load(table(f"{name} 1")), Table.load(table(f"{name} 2", **changes))
        return "they are compared" if second.is_comparable(first) else "they are not comparable"

    def own(definition: str) -> dict[str, Any]:
        return {"rows": {"from": "mine:MINE", "definitions": {"mine": definition}}}

    def damaged_row() -> str:
        apply = lambda x, g: x  # noqa: E731 (the very same row twice)
        calls = []

        def classify(pixels: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 3:  # after the probe and the first row
                raise KeyboardInterrupt
            return brightness(pixels)

        rows = [Measurement(name=name, apply=apply) for name in ("first", "second")]
        measured = (of_function(classify, 2), small_split(), rows, Accelerator(cpu=True), {})
        with contextlib.suppress(KeyboardInterrupt):
            evaluate(*measured, folder=folder / "partial")
        [row] = (folder / "partial").glob("*/000.npz")
        row.write_bytes(b"PK")
        try:
            evaluate(*measured, folder=folder / "partial")
        except ValueError as error:
            raise ValueError(str(error).replace(row.parent.name, "partial-…")) from error
        return "it is measured again"

    return {
        "results of the same model and images": partial(left, "same"),
        "results of another model": partial(left, "model", model="b", weights_sha256="2" * 64),
        "results of another model, --overwrite": partial(left, "over", True, model="b", weights_sha256="2" * 64),
        "results of other images": partial(left, "images", dataset=known["dataset"] | {"sha256": "3" * 64}),
        "results of other rows": partial(left, "rows", **own("nothing")),
        "results that say of nothing": unknown,
        "--output that is a file": no_folder,
        "predictions.npz that is empty": partial(damaged, "empty", "predictions.npz", b""),
        "predictions.npz that is cut short": partial(damaged, "short", "predictions.npz", b"PK\x03\x04"),
        "predictions.npz of text": partial(damaged, "text", "predictions.npz", b"no arrays"),
        "provenance.json that is cut short": partial(damaged, "record", "provenance.json", b'{"model": '),
        "provenance.json that is a list": partial(damaged, "list", "provenance.json", b"[]"),
        "a row that an interrupted table left, damaged": damaged_row,
        "tables of the same rows": partial(compared, "alike"),
        "tables of rows that are defined otherwise": partial(compared, "defined", **own("something else")),
    }


def of_cifar10c(folder: Path) -> dict[str, Case]:
    """CIFAR-10-C's own arrays."""
    labels = torch.tensor([0, 1])

    def measured(names: tuple[str, ...], **provenance: Any) -> str:
        rows = tuple(f"{name} {severity}" for name in names for severity in range(1, 6))
        right = np.array([[0, 1] if name.split()[0] in STANDARD else [1, 0] for name in rows], np.uint8)
        seeds, truth = (0,) * len(rows), labels.numpy().astype(np.uint8)
        table = Table(rows=rows, seeds=seeds, predictions=right, labels=truth, provenance=provenance)
        return "; ".join(mean_lines(table))

    official = partial(measured, arrays_sha256={})

    def read(content: bytes) -> str:
        np.save(folder / "labels.npy", np.tile(labels.numpy(), 5))
        (folder / "fog.npy").write_bytes(content)
        return f"{len(corruption_rows(folder, labels))} rows"

    return {
        "CIFAR-10-C, all nineteen": partial(official, (*STANDARD, *EXTRA)),
        "CIFAR-10-C without frost": partial(official, tuple(name for name in STANDARD if name != "frost")),
        "CIFAR-10-C, the extra ones alone": partial(official, EXTRA),
        "corruptions made here": partial(measured, tuple(CORRUPTIONS)),
        "CIFAR-10-C whose fog.npy is cut short": partial(read, b"\x93NUMPY\x01\x00"),
    }


def of_commands(folder: Path) -> dict[str, Case]:
    """Command lines."""
    for place, name in enumerate(CLASSES):
        (folder / "data" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (90 * place, 80, 70)).save(folder / "data" / "test" / name / "0.png")

    def called(study: str, *options: str, model: str = "mine:net") -> str:
        words = ["nula", "evaluate", study, "--model", model, "--dataset", str(folder / "data")]
        words += ["--output", str(folder / "results"), "--cpu", *options]
        errors = io.StringIO()
        with module(net=brightness), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.setattr("nula.evaluation.command.keep_memory", lambda device: None)
            patch.setattr(warnings, "formatwarning", warnings.formatwarning)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                try:
                    return f"exit code {main()}"
                except SystemExit as ended:
                    last = errors.getvalue().splitlines()[-1].partition(" (choose from")[0]
                    return f"exit code {ended.code}; {last}"

    return {
        "--seed 4294967296 of a table": partial(called, "table", "--seed", "4294967296"),
        "--seed -1 of a table": partial(called, "table", "--seed", "-1"),
        "--seed x of a table": partial(called, "table", "--seed", "x"),
        "--images 0": partial(called, "table", "--images", "0"),
        "--batch_size 0": partial(called, "table", "--batch_size", "0"),
        "a study that is not there": partial(called, "tables"),
        "--revision of a function": partial(called, "table", "--revision", "main"),
        "--model a function that is not there": partial(called, "table", model="mine:nothing"),
        "--rows that are not there": partial(called, "table", "--rows", "mine:OURS"),
        "--classes that are not there": partial(called, "table", "--classes", str(folder / "none.json")),
    }


def corpus(folder: Path) -> dict[str, Case]:
    """Name of each odd input to what tries it; files lie in `folder`."""
    parts = {"models": of_models, "results": of_results, "cifar10c": of_cifar10c, "commands": of_commands}
    found = of_rows() | of_images()
    for name, cases in parts.items():
        (folder / name).mkdir()
        found |= cases(folder / name)
    return found
