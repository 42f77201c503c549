"""Odd models, options and results of `nula evaluate`, for the table of inputs."""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from nula.data import Split, part_of
from nula.evaluation.classifiers import load_classifier, of_function
from nula.evaluation.measuring import Measurement, evaluate
from nula.evaluation.session import Subject, check_output
from nula.evaluation.studies.corruptions import corruption_rows, means
from nula.evaluation.studies.table import own_rows
from nula.records.table import Table

TITLE = "What evaluation gives for odd models, options and results"

MODULE = """
import torch
from nula.perturbations.suite import Perturbation
FLIP = (Perturbation("Flip", "left to right", lambda x, g: x.flip(3)),)
TWICE = FLIP * 2
NONE = ()
NUMBER = 7
def wide(pixels):
    return torch.zeros(len(pixels), 3)
def flat(pixels):
    return torch.zeros(len(pixels))
def few(pixels):
    return torch.zeros(len(pixels), 3)
few.labels = ["a", "b"]
flat.labels = wide.labels = ["a", "b", "c"]
"""
NAMES = ("a", "b", "c")


def split(count: int = 6, sort: bool = False) -> Split:
    labels = torch.arange(count) % 3
    labels = labels.sort().values if sort else labels
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Split.of(images, labels, NAMES)


def loaded(model: object, names: tuple[str, ...] = NAMES, **options: Any) -> str:
    classifier = load_classifier(str(model), names, torch.device("cpu"), **options)
    return f"{classifier.kind}, {tuple(classifier(torch.zeros(2, 3, 8, 8)).shape)} logits"


def measured(rows: list[Measurement], batch_size: int = 500, value: float = 0.0) -> str:
    answers = of_function(lambda pixels: torch.full((len(pixels), 3), value), 3)
    table = evaluate(answers, split(), rows, Accelerator(cpu=True), {}, batch_size=batch_size)
    return f"{len(table.rows)} rows of {len(table.labels)} images"


def beside(folder: Path, stored: dict[str, Any], now: dict[str, Any]) -> str:
    """What is said of results in a folder, of these provenances."""
    folder.mkdir()
    data = {"dataset": {"name": "pets", "classes": list(NAMES)}, "model": "theirs", "weights_sha256": "1"}
    (folder / "provenance.json").write_text(json.dumps(data | stored))
    check_output(Subject("ours", of_function(torch.zeros_like, 3), data | now, folder))
    return "replaced"


def table_of(rows: tuple[str, ...]) -> Table:
    labels = np.zeros(4, np.uint8)
    predictions = np.array([[0] * (1 + index % 4) + [1] * (3 - index % 4) for index in range(len(rows))], np.uint8)
    return Table(rows=rows, seeds=(0,) * len(rows), predictions=predictions, labels=labels, provenance={})


def chosen(data: Split, count: int) -> str:
    part, how = part_of(data, count)
    return f"{how}: {' + '.join(map(str, part.labels.bincount(minlength=3).tolist()))}"


def stored_table(folder: Path, content: bytes) -> str:
    folder.mkdir()
    (folder / "predictions.npz").write_bytes(content)
    return f"{len(Table.load(folder).rows)} rows"


def models(folder: Path) -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        id2label=dict(enumerate(NAMES)), label2id={name: index for index, name in enumerate(NAMES)},
    )  # fmt: skip
    net = ViTForImageClassification(config)
    for name in ("vit", "spare", "cut", "own_code"):
        net.save_pretrained(folder / name)
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / name)
    weights = load_file(folder / "vit" / "model.safetensors")
    save_file(weights | {"spare": torch.zeros(1)}, folder / "spare" / "model.safetensors", {"format": "pt"})
    weights.pop("vit.embeddings.cls_token")
    save_file(weights, folder / "cut" / "model.safetensors", {"format": "pt"})
    told = json.loads((folder / "own_code" / "config.json").read_text())
    told |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForImageClassification": "code.M"}}
    (folder / "own_code" / "config.json").write_text(json.dumps(told))
    (folder / "own_code" / "code.py").write_text("raise SystemExit('it was run')")


def corpus(folder: Path) -> dict[str, Callable[[], str]]:
    """Name to what is tried; files lie in `folder`."""
    models(folder)
    (folder / "odd_rows.py").write_text(MODULE)
    (folder / "text.onnx").write_text("no model")

    def there(call: Callable[..., str], *arguments: Any, **options: Any) -> str:
        """Called in the folder, as its modules are found from there."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            patch.chdir(folder)
            patch.delitem(sys.modules, "odd_rows", raising=False)
            given = call(*arguments, **options)
        return "; warning: ".join([given, *(str(warning.message) for warning in warned)])

    def rows(name: str) -> str:
        return ", ".join(row.name for row in own_rows(name, 0))

    same = Measurement(name="same", apply=lambda pixels, generator: pixels)
    cases: dict[str, Callable[[], str]] = {
        "a ViT": partial(loaded, folder / "vit"),
        "a ViT with a spare weight": partial(loaded, folder / "spare"),
        "a ViT that lacks a weight": partial(loaded, folder / "cut"),
        "a model with code of its own": partial(loaded, folder / "own_code"),
        "a model of other classes": partial(loaded, folder / "vit", ("a", "b", "z")),
        "a folder that is not there": partial(loaded, "no/such/folder"),
        "a revision of a folder": partial(loaded, folder / "vit", revision="v1"),
        "an .onnx file that is none": partial(loaded, folder / "text.onnx"),
        "an .onnx file that is not there": partial(loaded, folder / "none.onnx"),
        "a function": partial(loaded, "odd_rows:wide"),
        "a function whose answers have one axis": partial(loaded, "odd_rows:flat"),
        "a function of another number of classes": partial(loaded, "odd_rows:few", ("a", "b")),
        "a function that is not there": partial(loaded, "odd_rows:none"),
        "a module that is not there": partial(loaded, "no_such_module:function"),
        "a number in place of a function": partial(loaded, "odd_rows:NUMBER"),
        "--rows of one's own": partial(rows, "odd_rows:FLIP"),
        "--rows with a name twice": partial(rows, "odd_rows:TWICE"),
        "--rows that are none": partial(rows, "odd_rows:NONE"),
        "--rows of a number": partial(rows, "odd_rows:NUMBER"),
        "--rows that are not there": partial(rows, "odd_rows:ROWS"),
        "--rows without a name": partial(rows, "odd_rows"),
        "--batch_size 1": partial(measured, [same], 1),
        "logits that are not finite": partial(measured, [same], value=float("nan")),
        "--images 6 of shuffled images": partial(chosen, split(60), 6),
        "--images 6 of images sorted by class": partial(chosen, split(60, sort=True), 6),
        "--images 2 of three classes": partial(chosen, split(60, sort=True), 2),
        "--images above what there is": partial(chosen, split(6), 100),
        "--output with results of the same weights": partial(beside, folder / "1", {}, {"model": "renamed"}),
        "--output with results of other weights": partial(beside, folder / "2", {"weights_sha256": "2"}, {}),
        "--output with results on other classes": partial(beside, folder / "3", {"dataset": {"classes": ["x"]}}, {}),
        "--output with a file that is no result": partial(beside, folder / "4", {"weights_sha256": None}, {}),
        "results that are cut short": partial(stored_table, folder / "5", b"PK\x03\x04"),
        "results that are text": partial(stored_table, folder / "6", b"text"),
        "CIFAR-10-C: two of its kinds, and an extra one": lambda: str(
            means(table_of(("fog 1", "snow 1", "spatter 1")))
        ),
        "CIFAR-10-C, a folder without arrays": lambda: str(corruption_rows(folder / "vit", torch.zeros(1))),
    }
    return {name: partial(there, case) for name, case in cases.items()}
