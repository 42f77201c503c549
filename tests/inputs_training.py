"""Odd data, settings, starts and folders of a training, for the table of inputs."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from nula.configuration_nula import CIFAR10_LABELS, NulaConfig
from nula.data import DataSource, Split, load_split, stratified
from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.card import hub_dataset
from nula.modeling_nula import NulaForImageClassification
from nula.publishing.hub import Target, check_hub
from nula.records.provenance import command_again, public_argument
from nula.runtime.arguments import assigned, at_least, positive
from nula.train.checks import check_environment, check_setting
from nula.train.launch import build_parser, start_accelerator
from nula.train.recipe import V0, Recipe
from nula.train.run import Run, RunSettings
from nula.train.start import FromScratch, FromWeights
from nula.train.validation import hold_out

TITLE = "What training gives for odd data, settings, starts and folders"

Case = Callable[[], str]
SMALL = {"stem_channels": 4, "hidden_sizes": (8, 12), "depths": (0, 0)}
PETS = ("bird", "cat", "dog")


def picture(value: int = 100, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (40, 33), value if mode != "RGB" else (value, value, value))


def small_net(**changes: Any) -> NulaForImageClassification:
    torch.manual_seed(0)
    return NulaForImageClassification(NulaConfig(**{**SMALL, **changes}))


def by_class(sizes: list[int]) -> Split:
    """Images sorted by class, so many of each."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return Split.of(torch.zeros(len(labels), 32, 32, 3, dtype=torch.uint8), labels, tuple("abcdefghij"[: len(sizes)]))


def shares(labels: torch.Tensor) -> str:
    return " + ".join(map(str, labels.bincount().tolist()))


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables of the environment, meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read(dataset: object, split: str = "train", **columns: str) -> str:
    data = load_split(str(dataset), split, image_size=32, **columns)
    return f"{len(data.labels)} images of the classes {', '.join(data.names)}"


def of_data(folder: Path) -> dict[str, Case]:
    """Data sets in `folder`."""
    label = datasets.ClassLabel(names=list(PETS))
    good = picture()
    good.save(folder / "good.png")
    png = (folder / "good.png").read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    noise = (folder / "noise.png").read_bytes()
    (folder / "folders" / "train").mkdir(parents=True)
    for name in ("cat", "hot dog"):
        (folder / "folders" / "train" / name).mkdir()
        good.save(folder / "folders" / "train" / name / "0.png")
    (folder / "one" / "train" / "cat").mkdir(parents=True)
    good.save(folder / "one" / "train" / "cat" / "0.png")
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text("raise RuntimeError")
    (folder / "cut").mkdir()
    (folder / "cut" / "train.parquet").write_bytes(b"PAR1")
    (folder / "none").mkdir()

    def stored(name: str, images: list, labels: list, image: Any = None, kind: Any = label, **more: list) -> Case:
        def case() -> str:
            features = {"img": image or datasets.Image(), "label": kind} | {key: datasets.Image() for key in more}
            table = datasets.Dataset.from_dict(
                {"img": images, "label": labels, **more}, features=datasets.Features(features)
            )
            table.save_to_disk(folder / name)
            return read(folder / name)

        return case

    def deep() -> str:
        """The middle of 16 bits is the middle of 8."""
        image = Image.fromarray(np.full((32, 32), 128 * 257, dtype=np.uint16))
        stored("deep", [image, image], [0, 1])()
        pixels = load_split(str(folder / "deep"), "train").images
        assert torch.equal(pixels[0], NulaImageProcessor().pixels(image)[0].permute(1, 2, 0))
        return f"pixels of {pixels.unique().tolist()}, as the pipeline has them"

    encoded = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    numbers = datasets.Value("int64")
    return {
        "images in a folder for each class": partial(read, folder / "folders"),
        "images in one folder": partial(read, folder / "one"),
        "folder of nothing": partial(read, folder / "none"),
        "folder that is not there": partial(read, folder / "my digits"),
        "name with a space and a slash": partial(read, "data/my/digits"),
        "Hub id, without a network": partial(read, "nobody/nothing"),
        "file in place of a folder": partial(read, folder / "good.png"),
        "folder with a data-set script": partial(read, folder / "script"),
        "parquet file cut short": partial(read, folder / "cut"),
        "column of bytes": stored("bytes", [png] * 2, [0, 1], datasets.Value("binary")),
        "column of bytes and path": stored("both", [{"bytes": png, "path": None}] * 2, [0, 1], encoded),
        "bytes that are no image": stored("text", [png, b"text"], [0, 1], datasets.Value("binary")),
        "truncated image": stored("half", [png, noise[: len(noise) // 2]], [0, 1], datasets.Value("binary")),
        "row without an image": stored("hole", [good, None], [0, 1]),
        "two columns of images": stored("two", [good] * 2, [0, 1], other=[good] * 2),
        "column of images that is not there": partial(read, folder / "folders", image_column="picture"),
        "16-bit gray": deep,
        "labels of text": stored("words", [good] * 2, ["cat", "dog"], kind=datasets.Value("string")),
        "labels of floating-point numbers": stored("floats", [good] * 2, [0.0, 1.0], kind=datasets.Value("float32")),
        "labels of several classes each": stored("lists", [good] * 2, [[0], [1]], kind=datasets.List(label)),
        "integers without names": stored("ints", [good] * 3, [0, 2, 1], kind=numbers),
        "integers that number nothing": stored("large", [good] * 2, [0, 2**40], kind=numbers),
        "no label": stored("null", [good] * 2, [0, None]),
        "label -1": stored("minus", [good] * 2, [0, -1]),
        "labels of one class": stored("same", [good] * 2, [0, 0], kind=numbers),
        "split that is not there": partial(read, folder / "folders", "test"),
        "split without a row": stored("empty", [], []),
    }


def of_choices() -> dict[str, Case]:
    """Images that are held out or drawn."""

    def held_out(split: Split, count: int) -> str:
        kept, chosen = hold_out(split, count)
        return f"{chosen.choice}: {shares(chosen.images.labels)}, and {shares(kept.labels)} to train on"

    def drawn(sizes: list[int], count: int) -> str:
        labels = by_class(sizes).labels
        return shares(labels[stratified(labels, count, seed=0)])

    sorted_images = by_class([60, 30, 10])
    shuffled = sorted_images.take(torch.randperm(100, generator=torch.Generator().manual_seed(0)))
    return {
        "--validation_images 20 of images sorted by class": partial(held_out, sorted_images, 20),
        "--validation_images 20 of shuffled images": partial(held_out, shuffled, 20),
        "--validation_images 2 of three classes": partial(held_out, sorted_images, 2),
        "--validation_images that are all of a class": partial(held_out, by_class([60, 39, 1]), 60),
        "--validation_images that are all": partial(held_out, sorted_images, 100),
        "7 images drawn of 3 + 3 + 4": partial(drawn, [3, 3, 4], 7),
        "0 images drawn": partial(drawn, [3, 3, 4], 0),
    }


def of_settings() -> dict[str, Case]:
    """Arguments and the environment."""

    def recipe(*assignments: str) -> str:
        fields = [name for name in vars(V0) if name != "name"]
        return Recipe(**vars(V0) | assigned(list(assignments), fields, "--recipe")).name

    def configured(*assignments: str) -> str:
        return type(FromScratch().load(SimpleNamespace(config=list(assignments)))(PETS).model).__name__

    def launched(**variables: str) -> str:
        with environment(**variables):
            check_environment()
        return "nothing is said"

    def reported(trackers: str) -> str:
        parser = build_parser("Train.")
        try:
            start_accelerator(parser.parse_args(["--output_dir", "run", "--report_to", trackers]))
        except SystemExit as refusal:  # which lists what this machine has
            raise SystemExit(str(refusal).partition(";")[0]) from None
        return "it is reported"

    def trained(split: Split, **changes: Any) -> str:
        check_setting(split, Accelerator(cpu=True), Recipe(**vars(V0) | {"batch_size": 32} | changes))
        return "nothing is said"

    sizes = [torch.zeros(40, 40, 3, dtype=torch.uint8), torch.zeros(40, 33, 3, dtype=torch.uint8)] * 32
    return {
        "--recipe learning_rate=NaN": partial(recipe, "learning_rate=NaN"),
        "--recipe weight_decay=-1": partial(recipe, "weight_decay=-1"),
        "--recipe batch_size=0": partial(recipe, "batch_size=0"),
        "--recipe batch_size=1e3": partial(recipe, "batch_size=1e3"),
        "--recipe speed=9": partial(recipe, "speed=9"),
        "--config hidden_sizes=[8,-8]": partial(configured, "hidden_sizes=[8,-8]"),
        "--minutes -1": lambda: str(positive("-1")),
        "--minutes soon": lambda: str(positive("soon")),
        "--minutes nan": lambda: str(positive("nan")),
        "--seed 4294967296": lambda: str(at_least(0, 2**32 - 1)("4294967296")),
        "--report_to tensorboard,nothing": partial(reported, "tensorboard,nothing"),
        "gradients accumulated by the environment": partial(launched, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4"),
        "FSDP of accelerate's configuration file": partial(launched, ACCELERATE_USE_FSDP="true"),
        "mixed precision fp16": partial(launched, ACCELERATE_MIXED_PRECISION="fp16"),
        "mixed precision bf16": partial(launched, ACCELERATE_MIXED_PRECISION="bf16"),
        "fewer images than a batch": partial(trained, by_class([3, 3])),
        "images of one class": partial(trained, by_class([64])),
        "images of several sizes": partial(trained, Split.of(sizes, torch.arange(64) % 2, ("a", "b"))),
        "a border wider than the images": partial(trained, by_class([32, 32]), crop_padding=32),
    }


def of_starts(folder: Path) -> dict[str, Case]:
    """Weights in `folder` that a run starts from."""
    for name, changes in (("start", {}), ("gray", {"num_channels": 1}), ("shape", {}), ("damaged", {})):
        small_net(**changes).save_pretrained(folder / name)
    config = json.loads((folder / "shape" / "config.json").read_text())
    (folder / "shape" / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    weights = folder / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "no weights").mkdir()

    def started(name: str, names: tuple[str, ...] = PETS) -> str:
        start = FromWeights("--v0", "").load(SimpleNamespace(start=str(folder / name)))(names)
        assert tuple(start.model.config.id2label.values()) == names
        return f"the head is {start.parent.head if start.parent else None}, of {', '.join(names)}"

    called = ("plane", "car", *CIFAR10_LABELS[2:])
    return {
        "start for the classes that it knows": partial(started, "start", CIFAR10_LABELS),
        "start for its classes in another order": partial(started, "start", tuple(reversed(CIFAR10_LABELS))),
        "start for its classes by other names": partial(started, "start", called),
        "start for classes that it does not know": partial(started, "start"),
        "start that takes gray images": partial(started, "gray"),
        "start whose weights have other shapes": partial(started, "shape"),
        "start whose weights are cut short": partial(started, "damaged"),
        "start without weights": partial(started, "no weights"),
    }


def of_runs(folder: Path) -> dict[str, Case]:
    """Folders of runs in `folder`."""

    def run(name: str, **changes: Any) -> Run:
        recipe = Recipe(**vars(V0) | {"batch_size": 32, "restarts": 0, "optimizer": "adamw"} | changes)
        settings = RunSettings(recipe=recipe, output_dir=folder / name)
        return Run(small_net(id2label={0: "a", 1: "b"}), by_class([32, 32]), Accelerator(cpu=True), settings)

    def resumed(name: str, **changes: Any) -> str:
        again = run(name, **changes)
        again.resume()
        return f"it goes on from step {again.progress.step}"

    def saved(name: str, damage: str = "", **changes: Any) -> str:
        begun = run(name)
        begun.start()
        begun.step()
        begun.save()
        if damage:
            (folder / name / "checkpoint" / damage).write_bytes(b"")
        return resumed(name, **changes)

    def left(name: str, what: str) -> str:
        (folder / name).mkdir()
        (folder / name / what).write_bytes(b"")
        return resumed(name)

    def begun_twice() -> str:
        saved("twice")
        run("twice").start()
        return "it begins"

    return {
        "--resume in a folder that is not there": partial(resumed, "new"),
        "--resume where a run ended in its first checkpoint": partial(left, "killed", "checkpoint.new"),
        "--resume where weights are and no checkpoint": partial(left, "weights", "model.safetensors"),
        "--resume from a checkpoint": partial(saved, "whole"),
        "--resume from a damaged checkpoint": partial(saved, "broken", "identity.json"),
        "--resume by another recipe": partial(saved, "other", weight_decay=0.5),
        "no --resume where a checkpoint is": begun_twice,
    }


def of_publishing(folder: Path) -> dict[str, Case]:
    """What goes to a Hub."""

    def listed(name: str) -> str:
        record = DataSource(dataset=name).record("train", by_class([1, 1]))
        return f"datasets: {hub_dataset(record)}, called {record['name']}"

    def target(hub_id: str, tag: str | None = None) -> str:
        check_hub(Target(hub_id, tag))
        return "it can be pushed to"

    return {
        "data of the Hub in a card": partial(listed, "owner/my_images"),
        "data of a folder in a card": partial(listed, f"{folder}/my digits"),
        "data of a relative path in a card": partial(listed, "home/of/mine"),
        "command with paths in a record": lambda: command_again(
            "accelerate launch", ["train.py", "--dataset=/home/me/my digits", "--output_dir", "runs/mine", "--resume"]
        ),
        "release of the project in a record": lambda: public_argument(str(Path(__file__).parents[1] / "releases/v1")),
        "repository without an owner": partial(target, "nula"),
        "tag with a space": partial(target, "owner/nula", "v1 0"),
    }


def corpus(folder: Path) -> dict[str, Case]:
    """Name of each odd input to what tries it; files lie in `folder`."""
    (folder / "starts").mkdir()
    (folder / "runs").mkdir()
    found = of_data(folder) | of_choices() | of_settings() | of_starts(folder / "starts") | of_runs(folder / "runs")
    return found | of_publishing(folder)
