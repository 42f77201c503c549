"""Training on somebody's own images: any classes, sizes and modes, and what a run leaves."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, launch, photograph
from PIL import Image
from test_training import known_speed, multiply_adds_of

from nula.configuration_nula import CIFAR10_LABELS, NulaConfig
from nula.data import DataSource, Split, load_split
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.records.cifar10 import CIFAR10_FINGERPRINTS
from nula.records.release import Release, load_releases
from nula.records.weights import load_model, weights_sha256
from nula.train import finetune_v1, train_v0
from nula.train.augmentation import crop_and_flip, perturb
from nula.train.launch import train_version
from nula.train.recipe import V0, V1, Version
from nula.train.record import RunInputs, TrainingData, release_of
from nula.train.run import RunSettings
from nula.train.start import FromScratch, FromWeights, Parent, Start, head_order, release_name

PETS = ("cat", "dog", "horse")
EACH = 44  # images of a class: four steps of 32 are one epoch
MODES = ("RGB", "L", "RGBA", "P")
FOUR_STEPS = ("--max_steps", "4", "--recipe", "batch_size=32")


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images in a folder for each class, of mixed sizes and modes."""
    root = tmp_path_factory.mktemp("data") / "pets"
    for label, name in enumerate(PETS):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for index in range(EACH):
            picture = np.roll(photograph(40 + index % 9, 36 + label * 8), index, axis=1)
            Image.fromarray(picture).convert(MODES[index % len(MODES)]).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def trained(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from scratch at 48 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "v0"
    done = launch("train_v0.py", "--dataset", pets, "--image_size", 48, "--output_dir", folder, *FOUR_STEPS)
    assert done.returncode == 0, done.stderr
    return folder


def run_script(script: object, *arguments: object) -> None:
    """A training script in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script.VERSION.script, *map(str, arguments)])
            patch.setattr("nula.train.launch.keep_memory", lambda device: None)
            patch.setattr("nula.train.run.peak_flops", known_speed)
            patch.setenv("ACCELERATE_USE_CPU", "true")
            script.main()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def tuned(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of v1, fine-tuned on other classes."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    run_script(finetune_v1, "--v0", ROOT / "releases/v1", "--dataset", pets, "--output_dir", folder, *FOUR_STEPS)
    return folder


def test_a_net_trained_on_own_images_knows_their_classes_and_size(trained, pets):
    model, processor = NulaForImageClassification.from_pretrained(trained), NulaImageProcessor.from_pretrained(trained)
    assert model.config.id2label == dict(enumerate(PETS))
    assert model.config.label2id == {"cat": 0, "dog": 1, "horse": 2}
    assert model.classifier.out_features == 3
    assert processor.size == {"height": 48, "width": 48}
    classifier = NulaImageClassificationPipeline(model=model, image_processor=processor)
    answers = classifier(str(pets / "train" / "dog" / "2.png"), top_k=None)
    assert {answer["label"] for answer in answers} == set(PETS)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


def test_the_record_tells_the_data(trained, pets):
    record = json.loads((trained / "training.json").read_text())
    split = load_split(str(pets), "train", image_size=48)
    assert record["dataset"] == {
        "name": "pets",
        "split": "train",
        "images": 3 * EACH,
        "sha256": split.fingerprint,
        "classes": list(PETS),
        "image_size": 48,
    }
    assert (record["head"], record["initial_weights_sha256"]) == (None, None)
    multiply_adds = multiply_adds_of(NulaForImageClassification.from_pretrained(trained), side=48)
    assert record["flops_per_image"] == 6 * sum(multiply_adds) - 2 * multiply_adds[0]


def test_fine_tuning_on_other_classes_makes_a_new_head_on_the_body(tuned):
    model, v1 = NulaForImageClassification.from_pretrained(tuned), load_model(ROOT / "releases" / "v1")
    assert list(model.config.id2label.values()) == list(PETS)
    assert model.classifier.weight.shape == (3, 496)
    for (name, after), before in zip(model.nula.named_parameters(), v1.nula.parameters(), strict=True):
        assert (after - before).norm() < 0.05 * before.norm().clamp(min=0.1), name
        assert not torch.equal(after, before), name  # nothing is frozen
    record = json.loads((tuned / "training.json").read_text())
    assert (record["head"], record["initial_weights_sha256"]) == ("new", weights_sha256(ROOT / "releases" / "v1"))
    assert record["dataset"]["classes"] == list(PETS)


def test_the_folders_of_runs_are_releases(trained, tuned, tmp_path):
    for name in ("v0", "v1"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "releases" / name / "release.json", tmp_path / name)
    shutil.copytree(tuned, tmp_path / "mine")
    releases = load_releases(tmp_path)
    assert list(releases) == ["v0", "v1", "mine"]
    mine, own = releases["mine"], Release.load(trained)
    assert (mine.parent, mine.published, mine.script) == ("v1", None, "train/finetune_v1.py")
    assert mine.recipe["batch_size"] == 32
    assert mine.summary == (
        "mine is fine-tuned from v1 on 132 images of pets, of 3 classes, with a new head, by the recipe of v1 with "
        "another batch_size, for at most 4 steps."
    )
    assert (own.name, own.parent, own.hub_id, own.published) == ("v0", None, "local/nula-v0", None)
    assert own.summary == (
        "v0 is trained from scratch on 132 images of pets, of 3 classes, at 48×48 pixels, by the recipe of v0 with "
        "another batch_size, for at most 4 steps."
    )


def test_another_version_is_a_recipe_and_a_script(tiny_folder, pets, tmp_path, capsys):
    version = Version(recipe=replace(V1, name="v2"), script="train/finetune_v2.py", summary="v2.", color="#009E73")

    def main() -> None:
        train_version(version, FromWeights("--v1", "owner/nula-v1"), "Fine-tune v1 into v2.")

    arguments = ("--v1", tiny_folder, "--dataset", pets, "--output_dir", tmp_path / "v2", *FOUR_STEPS)
    run_script(SimpleNamespace(VERSION=version, main=main), *arguments)
    output = capsys.readouterr().out
    line = f"a new head on the body of {tiny_folder}, as the data have other classes than it knows: cat, dog, horse."
    assert output.splitlines().count(line) == 1
    release = Release.load(tmp_path / "v2")
    assert (release.name, release.parent, release.script) == ("v2", "tiny", "train/finetune_v2.py")
    assert load_model(tmp_path / "v2").config.num_labels == 3


def started(names: tuple[str, ...], source: Path, seed: int = 0) -> Start:
    """What fine-tuning from `source` starts with."""
    weights = FromWeights("--v0", "")
    make_start = weights.load(SimpleNamespace(start=str(source)))
    torch.manual_seed(seed)
    return make_start(names)


def test_weights_that_cannot_be_a_start_are_named(tmp_path):
    small = {"stem_channels": 4, "hidden_sizes": (8, 12), "depths": (0, 0)}
    for name, changes in (("gray", {"num_channels": 1}), ("other", {})):
        NulaForImageClassification(NulaConfig(**small, **changes)).save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "other" / "config.json").read_text()) | {"hidden_sizes": [8, 16]}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^--v0 .*gray: the model takes images of 1 channels, must take 3 \(RGB\)"):
        started(PETS, tmp_path / "gray")
    shapes = r"nula\.stages\.1\.widening\.convolution\.weight has shape \(12, 8, 3, 3\) in place of \(16, 8, 3, 3\)"
    with pytest.raises(ValueError, match=rf"^--v0 .*other: the weights of .* do not fit the model: {shapes}"):
        started(PETS, tmp_path / "other")


def test_a_net_from_scratch_gets_the_classes_of_its_data_at_any_size():
    make_start = FromScratch().load(SimpleNamespace(config=[]))
    assert make_start(("cat", "dog")).model.config.id2label == {0: "cat", 1: "dog"}


def test_classes_called_otherwise_are_adopted(tiny_folder):
    """Ten classes that are CIFAR-10's to a reader, but not by name, are not taken for those in their order."""
    names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    start = started(names, tiny_folder)
    assert start.parent.head == "new"
    assert tuple(start.model.config.id2label.values()) == names


def test_a_run_with_images_held_out_keeps_its_choice(pets, tmp_path, capsys):
    options = ("--dataset", pets, "--output_dir", tmp_path / "run", "--validation_images", 30, "--checkpoint_steps", 1)
    options += ("--config", "stem_channels=4", "hidden_sizes=[8,8]", "depths=[0,0]", "--recipe", "batch_size=32")
    run_script(train_v0, *options, "--max_steps", 1)
    first = json.loads((tmp_path / "run" / "training.json").read_text())
    run_script(train_v0, *options, "--max_steps", 2, "--resume")
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert "30 images, of each class its share, drawn by seed 0" in capsys.readouterr().out
    assert record["held_out"] == first["held_out"]
    assert (record["held_out"]["choice"], record["held_out"]["images"]) == ("stratified", 30)
    assert record["dataset"]["images"] == 3 * EACH - 30
    assert "Clean" in record["validation"]
    assert not any("CIFAR" in row for row in record["validation"])
    with pytest.raises(SystemExit, match=r"another run than that of the checkpoint .*: data is"):
        run_script(train_v0, *options[:-2], "--validation_images", 40, "--recipe", "batch_size=32", "--resume")


def test_a_class_without_an_image_is_told_of(pets, tmp_path, capsys):
    """A folder of images has the classes of all its splits."""
    data = shutil.copytree(pets, tmp_path / "pets")
    (data / "test" / "lynx").mkdir(parents=True)
    shutil.copy(data / "train" / "cat" / "0.png", data / "test" / "lynx")
    run_script(train_v0, "--dataset", data, "--output_dir", tmp_path / "run", *FOUR_STEPS)
    assert "no training image is of the classes: lynx." in capsys.readouterr().out.splitlines()


def test_a_push_that_could_not_measure_is_refused_before_training(pets, tmp_path, monkeypatch):
    monkeypatch.setattr("nula.publishing.run.check_before", lambda *arguments: None)
    options = ("--dataset", pets, "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id", "owner/pets")
    with pytest.raises(SystemExit, match=r'--push_to_hub measures .* on --test_split test: .*split "test"'):
        run_script(train_v0, *options, *FOUR_STEPS)
    other = tmp_path / "other"
    kinds = {"train": ["cat", "dog"], "test": ["cat", "lynx"]}
    columns = {"image": [Image.fromarray(photograph())] * 2, "label": [0, 1]}
    splits = {
        split: datasets.Dataset.from_dict(
            columns, features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        )
        for split, names in kinds.items()
    }
    datasets.DatasetDict(splits).save_to_disk(other)
    with pytest.raises(SystemExit, match=r"--test_split test: the model has no class for 'lynx' of the data"):
        run_script(train_v0, "--dataset", other, *options[2:], *FOUR_STEPS)
    assert not (tmp_path / "run").exists()


def test_a_new_head_is_drawn_by_the_seed(tiny_folder):
    first, again, other = (started(PETS, tiny_folder, seed).model for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.classifier.weight.std().item() == pytest.approx(16**-0.5, rel=0.3)
    for a, b in zip(first.nula.parameters(), load_model(tiny_folder).nula.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_head_follows_the_order_of_the_data(tiny_folder, pixels):
    before = load_model(tiny_folder)
    names = tuple(name.title() for name in reversed(CIFAR10_LABELS))
    start = started(names, tiny_folder)
    assert start.parent.head == "reordered"
    assert tuple(start.model.config.id2label.values()) == names
    with torch.no_grad():
        torch.testing.assert_close(start.model(pixels).logits, before(pixels).logits.flip(1))
    same = started(CIFAR10_LABELS, tiny_folder)
    assert same.parent.head == "kept"
    assert all(torch.equal(a, b) for a, b in zip(same.model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("names", "known", "order"),
    [
        (("cat", "dog"), ("cat", "dog"), [0, 1]),
        (("Dog", "cat"), ("cat", "dog"), [1, 0]),
        (("polar_bear", "Cat"), ("cat", "polar-bear"), [1, 0]),
        (("cat", "dog", "horse"), ("cat", "dog"), None),
        (("cat", "horse"), ("cat", "dog"), None),
        (("cat", "Cat"), ("cat", "dog"), None),
        (("+", "-"), ("-", "+"), [1, 0]),
        (("+", "-"), ("+", "-"), [0, 1]),
    ],
)
def test_classes_are_matched_case_and_separators_aside(names, known, order):
    assert head_order(names, known) == order


@pytest.mark.parametrize("side", [16, 17, 33, 49])
def test_images_of_any_side_are_augmented(side):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, side, side, 3), generator=generator, dtype=torch.uint8)
    recipe = replace(V0, augmented_share=1.0, crop_padding=side - 1)
    plain = crop_and_flip(images, torch.arange(64), recipe, generator)
    result, operators = perturb(plain, recipe, generator)
    assert result.shape == (64, 3, side, side)
    assert set(operators.tolist()) == {1, 2, 3}
    decimated, before = result[operators == 2], plain[operators == 2]
    even = torch.arange(side) // 2 * 2  # the row or column that is kept in place of each
    assert torch.equal(decimated, before[..., even, :][..., even])


def one_class(folder: Path) -> Path:
    """32 images of cats, in a data set that knows dogs, too."""
    columns = {"image": [Image.fromarray(photograph())] * 32, "label": [0] * 32}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(folder)
    return folder


def test_data_that_cannot_be_trained_on_are_refused(pets, tmp_path, capsys):
    output = ("--output_dir", tmp_path / "run")
    with pytest.raises(SystemExit, match="error: 132 images are fewer than one batch of 512"):
        run_script(train_v0, "--dataset", pets, *output)
    with pytest.raises(SystemExit, match="error: recipe 'v0': crop_padding is 16, must be an integer 0 to 15"):
        run_script(
            train_v0, "--dataset", pets, *output, "--image_size", 16, "--recipe", "batch_size=32", "crop_padding=16"
        )
    with pytest.raises(SystemExit) as refused:
        run_script(train_v0, "--dataset", pets, *output, "--image_size", 15)
    assert refused.value.code == 2
    assert "argument --image_size: '15' must be an integer of at least 16" in capsys.readouterr().err
    message = "error: all 32 training images are of the class 'cat'; at least two classes must occur"
    with pytest.raises(SystemExit, match=message):
        run_script(train_v0, "--dataset", one_class(tmp_path / "cats"), *output, "--recipe", "batch_size=32")
    assert not (tmp_path / "run").exists()


V1_VERSION, V0_VERSION = finetune_v1.VERSION, train_v0.VERSION


@pytest.mark.parametrize(
    ("version", "parent", "changes", "published", "summary"),
    [
        (V0_VERSION, None, {}, "published_v0", "v0 is trained from scratch."),
        (V1_VERSION, "v0", {}, "published_v1", V1_VERSION.summary),
        (V1_VERSION, "nula-cifar10-robust-v0", {}, "published_v1", V1_VERSION.summary),
        (V1_VERSION, "small", {}, "published_v1", "v1 is fine-tuned from small on 3 images of cifar10, of 10 classes."),
        (
            V0_VERSION,
            None,
            {"weight_decay": 0.0},
            None,
            "v0 is trained from scratch on 3 images of cifar10, of 10 classes, by the recipe of v0 with another "
            "weight_decay.",
        ),
    ],
)
def test_a_release_says_what_is_true_of_its_run(version: Version, parent, changes, published, summary):
    data = Split(torch.zeros(3, 32, 32, 3), torch.zeros(3), CIFAR10_LABELS, CIFAR10_FINGERPRINTS["train"])
    start = Start(torch.nn.Module(), parent and Parent("--v0", f"runs/{parent}", parent, "", "kept"))
    settings = RunSettings(recipe=replace(version.recipe, **changes), output_dir=Path("run"))
    release = release_of(
        RunInputs(version, settings, start, TrainingData(DataSource(dataset="/data/cifar10"), data)), None
    )
    assert (release.name, release.parent, release.published) == (version.recipe.name, parent, published)
    assert release.summary == summary
    assert (release.color, release.script) == (version.color, version.script)


def test_the_released_folders_say_the_same_of_themselves():
    for version in (V0_VERSION, V1_VERSION):
        release = Release.load(ROOT / "releases" / version.recipe.name)
        told = (version.summary, version.color, version.script, version.parent, version.published)
        assert (release.summary, release.color, release.script, release.parent, release.published) == told


def test_a_parent_is_named_by_its_release(tiny_folder):
    assert release_name(str(ROOT / "releases" / "v1")) == "v1"
    assert release_name(str(tiny_folder)) == "tiny"
    assert release_name("owner/nula-v0") == "nula-v0"
