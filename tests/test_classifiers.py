"""Any classifier on any data: its classes matched, perturbed at the data's size or at the model's."""

import builtins
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, SAMPLE, photograph
from huggingface_hub import constants
from onnx import TensorProto, helper
from PIL import Image
from torch.nn import functional as F
from transformers import (
    BitImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from nula.cli import main
from nula.configuration_nula import CIFAR10_LABELS
from nula.data import Split, load_split, to_pixels
from nula.evaluation import measuring
from nula.evaluation.classes import match_classes, places_of, read_classes
from nula.evaluation.classifiers import load_classifier, model_sha256, of_function, require_derivatives
from nula.evaluation.comparison import as_csv, as_markdown, as_text
from nula.evaluation.measuring import Measurement, evaluate, predict, table_rows
from nula.evaluation.null_space import attack
from nula.evaluation.processing import Processing, processing_of
from nula.evaluation.studies.pixels import pixels_of
from nula.evaluation.studies.sensitivity import sensitivity
from nula.perturbations.appearance import gaussian_noise
from nula.perturbations.suite import ROWS, Perturbation
from nula.publishing.export import write_forms
from nula.records.table import Table

V1 = str(ROOT / "releases" / "v1")
CPU = torch.device("cpu")
ANIMALS = ("cat", "dog", "horse")


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of images: three classes, a folder each, of mixed sizes."""
    root = tmp_path_factory.mktemp("animals")
    for shift, name in enumerate(ANIMALS):
        folder = root / "test" / name
        folder.mkdir(parents=True)
        for index, size in enumerate(((48, 64), (40, 40), (57, 33))):
            Image.fromarray(np.roll(photograph(*size), 5 * shift, axis=2)).save(folder / f"{index}.png")
    return str(root)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock ViT of random weights at 224x224 with three classes, whose names are spelled otherwise."""
    torch.manual_seed(0)
    names = {0: "Dog", 1: "HORSE", 2: "cat"}
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, patch_size=56,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 224, "width": 224}, resample=3).save_pretrained(folder)
    return str(folder)


def center(pixels: torch.Tensor) -> torch.Tensor:
    """Logits of two classes: the red and the green of the pixel in the middle."""
    return pixels[:, :2, pixels.shape[2] // 2, pixels.shape[3] // 2]


center.labels = ("red", "green")


@pytest.mark.parametrize(
    ("names", "labels", "places"),
    [
        (("cat", "dog"), ("dog", "cat"), [1, 0]),
        (("Cat", "hot dog"), ("hot_dog", "CAT"), [1, 0]),
        (("cat", "dog"), ("tiger", "dog", "cat", "bird"), [2, 1]),  # a model that knows more
        (("cat", "dog"), ("cat",), None),
        (("a-b", "c"), ("ab", "a b", "c"), None),  # two that differ in separators alone
        (("ab", "c"), ("ab", "a b", "c"), [0, 2]),  # one of which is spelled just so
        (("+", "-"), ("-", "+"), [1, 0]),
    ],
)
def test_classes_are_matched_by_name(names, labels, places):
    assert places_of(names, labels) == places


def test_a_match_selects_and_adds_probabilities(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"cat": ["tabby", 3], "dog": 1}))
    labels = ("tabby", "pug", "car", "lynx")
    match = match_classes(("dog", "cat"), labels, read_classes(tmp_path / "classes.json"))
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    assert match.select(logits).exp()[0].tolist() == pytest.approx([0.2, 0.5])
    assert match.record() == {"matched": "by file", "outputs": 4, "outputs_used": 3, "places": [[1], [0, 3]]}
    plain = match_classes(("car", "tabby"), labels)
    assert plain.select(logits).exp()[0].tolist() == pytest.approx([0.3, 0.1])
    assert plain.record() == {"matched": "by name", "outputs": 4, "outputs_used": 2}
    with pytest.raises(ValueError, match=r"logits \(1, 2\), must be \(images, 4\)"):
        match.select(logits[:, :2])


def test_classes_without_names_are_taken_in_order():
    assert match_classes(("x", "y"), ("LABEL_0", "LABEL_1")).record()["matched"] == "in order"
    assert match_classes(("0", "1"), ("x", "y")).places == ((0,), (1,))
    with pytest.raises(ValueError, match="no class for 'x', 'y' of the data; it has 'LABEL_0'"):
        match_classes(("x", "y"), ("LABEL_0",))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"cat": "cat"}, "names no class of the model for 'dog'; it has 'cat'"),
        ({"cat": "cat", "dog": "wolf"}, "maps 'dog' to 'wolf', must be a class of the model or 0 to 1"),
        ({"cat": "cat", "dog": 2}, "maps 'dog' to 2, must be a class of the model or 0 to 1"),
        ({"cat": "cat", "dog": []}, "maps 'dog' to no class"),
        ({"cat": ["bird", 0], "dog": "bird"}, "uses 'bird' twice, for 'cat' and for 'dog'"),
        ({"cat": ["bird", 1], "dog": "cat"}, "uses 'bird' twice, for 'cat' and for 'cat'"),
    ],
)
def test_a_file_of_classes_that_cannot_be_is_told_of(chosen, message):
    with pytest.raises(ValueError, match=message):
        match_classes(("cat", "dog"), ("cat", "bird"), chosen)


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[1]", "must be an object such as")])
def test_a_file_that_is_none_of_classes_is_told_of(tmp_path, content, message):
    with pytest.raises(OSError, match=r"classes\.json cannot be read: No such file"):
        read_classes(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "classes.json")


def test_a_model_that_knows_more_is_scored_among_the_classes_of_the_data():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    few, all_ten = load_classifier(V1, ("Dog", "cat"), CPU), load_classifier(V1, CIFAR10_LABELS, CPU)
    with torch.inference_mode():
        assert torch.equal(few(pixels), all_ten(pixels)[:, [5, 3]])
    assert few.record()["classes"] == {"matched": "by name", "outputs": 10, "outputs_used": 2}
    with pytest.raises(ValueError, match=r"no class for 'plane' of the data; it has 'airplane'.* Give --classes"):
        load_classifier(V1, ("plane", "cat"), CPU)


def test_an_exported_file_gives_what_the_model_gives(tmp_path, pixels):
    model = write_forms(V1, tmp_path)
    onnx = load_classifier(str(tmp_path / "nula.onnx"), ("ship", "cat"), CPU)
    with torch.inference_mode():
        torch.testing.assert_close(onnx(pixels), model(pixels)[:, [8, 3]], atol=1e-4, rtol=0)
        larger = F.interpolate(pixels, (48, 40), mode="bilinear", antialias=True)
        torch.testing.assert_close(onnx(larger).argmax(1), onnx(onnx.resized(larger)).argmax(1))
    assert onnx.record()["kind"] == "ONNX"
    assert len(model_sha256(str(tmp_path / "nula.onnx"))) == 64
    with pytest.raises(ValueError, match=r"needs derivatives, and the model \(ONNX\) has none"):
        require_derivatives(onnx)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_classifier(str(tmp_path / "none.onnx"), ("ship", "cat"), CPU)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"bad\.onnx cannot be loaded by onnxruntime"):
        load_classifier(str(tmp_path / "bad.onnx"), ("ship", "cat"), CPU)


def test_a_function_is_a_classifier(tmp_path, monkeypatch, pixels):
    (tmp_path / "mine.py").write_text(
        "def center(pixels):\n    return pixels[:, :2, 16, 16]\n"
        "def detached(pixels):\n    return center(pixels).detach()\n"
        "center.labels = ('red', 'green')\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    classifier = load_classifier("mine:center", ("green", "red"), CPU)
    assert torch.equal(classifier(pixels), pixels[:, [1, 0], 16, 16])
    require_derivatives(classifier)
    assert model_sha256("mine:center") is None
    second = load_classifier("mine:detached", ("a",), CPU, {"a": 1})  # the function has two outputs
    assert torch.equal(second(pixels), pixels[:, 1:2, 16, 16])
    with pytest.raises(ValueError, match="no class for 'a', 'b', 'c' of the data; it has '0', '1'"):
        load_classifier("mine:detached", ("a", "b", "c"), CPU)
    unnamed = load_classifier("mine:detached", ("a", "b"), CPU)
    assert unnamed.record()["classes"]["matched"] == "in order"
    with pytest.raises(ValueError, match=r"needs derivatives, and the model \(function\) has none"):
        require_derivatives(unnamed)
    absent = "cannot be imported"
    for name, message in (("mine:none", absent), ("none:x", absent), ("mine:number", "is int, must be a function")):
        with pytest.raises(ValueError, match=message):
            load_classifier(name, ("a", "b"), CPU)
    with pytest.raises(ValueError, match="does not tell its classes"):
        load_classifier("mine:detached", None, CPU)


@pytest.mark.parametrize("size", [{"height": 24, "width": 40}, {"shortest_edge": 36}])
def test_processing_is_the_processors_own_at_any_size(size):
    processor = ViTImageProcessor(size=size, resample=2, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3])
    processing = processing_of(processor)
    image = photograph(57, 41)
    given = processing.normalized(processing.resized(to_pixels(torch.from_numpy(image)[None])))
    expected = processor(Image.fromarray(image), return_tensors="pt").pixel_values
    assert given.shape == expected.shape
    assert (given - expected).abs().max() < 0.02


def test_the_way_of_timm_is_taken_from_its_configuration():
    """A processor with timm's data configuration, and just what torchvision's transforms of it do."""

    class Processor:
        data_config = {  # noqa: RUF012
            "input_size": (3, 24, 24), "interpolation": "bicubic", "crop_pct": 0.9,
            "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4),
        }  # fmt: skip

        def __call__(self, image: Image.Image, return_tensors: str):
            shorter = min(image.size)
            size = tuple(26 if side == shorter else int(26 * side / shorter) for side in image.size)
            resized = image.resize(size, Image.Resampling.BICUBIC)
            left, top = (round((length - 24) / 2) for length in size)
            cropped = np.asarray(resized.crop((left, top, left + 24, top + 24)), dtype=np.float32) / 255
            values = (cropped - np.array((0.4, 0.5, 0.6))) / np.array((0.2, 0.3, 0.4))
            return type("Batch", (), {"pixel_values": torch.from_numpy(values).float().permute(2, 0, 1)[None]})

    processing = processing_of(Processor())
    assert (processing.resize, processing.crop) == (26, (24, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Processor.data_config, "crop_mode", "squash")  # which this processor does not do
        with pytest.raises(ValueError, match="does more than resize"):
            processing_of(Processor())
    Processor.data_config["crop_pct"] = 0.8
    with pytest.raises(ValueError, match="does more than resize"):
        processing_of(Processor())


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timm_does_to_an_image_what_its_configuration_says(crop_mode):
    pytest.importorskip("timm")
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    settings = {"interpolation": "bilinear", "crop_pct": 0.9, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    processor = TimmWrapperImageProcessor(
        {"architecture": "resnet10t"} | settings | {"input_size": (3, 63, 63), "crop_mode": crop_mode}, "resnet10t"
    )
    processing = processing_of(processor)
    assert processing.resize == (70 if crop_mode == "center" else (70, 70))
    image = photograph(40, 64)
    given = processing.normalized(processing.resized(to_pixels(torch.from_numpy(image)[None])))
    assert (given - processor(image).pixel_values).abs().max() < 0.03  # timm's rounds to bytes in between


def test_a_timm_model_goes_through_the_table(animals, tmp_path):
    timm = pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=3)
    config = TimmWrapperConfig.from_dict(
        {"architecture": "resnet10t", "num_classes": 3, "label_names": ["horse", "cat", "dog"]}
        | {"pretrained_cfg": {"input_size": [3, 176, 176], "interpolation": "bicubic", "crop_pct": 0.95}}
    )
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(net.state_dict())
    model.save_pretrained(tmp_path / "timm")
    for place in ("data", "model"):
        table = evaluated(animals, str(tmp_path / "timm"), tmp_path / place, "--perturb_at", place)
        assert table.provenance["classifier"]["classes"]["matched"] == "by name"
        assert table.logits.shape == (20, 9, 3)


def evaluated(dataset: str, model: str, output: Path, *options: str) -> Table:
    """The table that `nula evaluate table` leaves."""
    command = ["nula", "evaluate", "table", "--model", model, "--dataset", dataset, "--output", str(output), "--cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, *options])
        assert main() == 0
    return Table.load(output)


def test_a_stock_vit_at_its_own_resolution(animals, vit, tmp_path, capsys):
    tables = {place: evaluated(animals, vit, tmp_path / place, "--perturb_at", place) for place in ("data", "model")}
    printed = capsys.readouterr().out
    assert "\nClean  " in printed
    assert "CIFAR-10" not in printed
    data = load_split(animals, "test")
    model = ViTForImageClassification.from_pretrained(vit).eval()

    def clean(image: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(to_pixels(image[None]), (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return model((resized - 0.5) / 0.5).logits[0, [2, 0, 1]]  # cat, dog, horse

    with torch.inference_mode():
        expected = torch.stack([clean(image) for image in data.images])
    for place, table in tables.items():
        np.testing.assert_allclose(table.logits[0], expected.numpy(), atol=1e-4)
        assert table.classes == ANIMALS
        assert table.provenance["classifier"]["perturb_at"] == place
        assert table.provenance["dataset"]["image_size"] is None
    # A shift by a pixel of the data is one of several pixels of the model.
    assert np.abs(tables["data"].logits[12] - tables["model"].logits[12]).max() > 1e-4


def test_images_of_several_sizes_have_the_noise_of_their_block(monkeypatch):
    """Each image is perturbed at its own size, in order, by the one generator of its block."""
    monkeypatch.setattr(measuring, "BLOCK", 2)
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8) for size in ((9, 12), (11, 8), (7, 7))
    ]
    noise = Measurement(name="noise", apply=lambda pixels, generator: gaussian_noise(pixels, 0.1, generator), seed=3)
    classifier = of_function(center, 2)
    classifier.processing = Processing(resize=(5, 6))
    logits, _ = predict(classifier, images, noise, Accelerator(cpu=True))
    expected = []
    for block, members in enumerate((images[:2], images[2:])):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + block)
        noisy = [gaussian_noise(to_pixels(image[None]), 0.1, generator) for image in members]
        expected += [
            center(F.interpolate(one, (5, 6), mode="bilinear", antialias=True).clamp(0, 1))[0] for one in noisy
        ]
    torch.testing.assert_close(logits, torch.stack(expected))


def test_an_image_is_cropped_once_wherever_it_is_perturbed():
    image = torch.randint(256, (1, 20, 30, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    untouched = Measurement(name="clean", apply=lambda pixels, generator: pixels)
    processing = Processing(resize=12, crop=(6, 6))
    expected = center(processing.resized(to_pixels(image)))
    for place in ("data", "model"):
        classifier = of_function(center, 2)
        classifier.processing, classifier.perturb_at = processing, place
        logits, _ = predict(classifier, image, untouched, Accelerator(cpu=True))
        assert torch.equal(logits, expected)


def test_images_of_several_sizes_need_a_model_with_one(animals):
    with pytest.raises(ValueError, match="of several sizes, and the model brings them to none"):
        evaluate(of_function(center, 2), load_split(animals, "test"), table_rows(0)[:1], Accelerator(cpu=True), {})


def test_studies_that_need_derivatives_say_so(animals, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    for study in ("sensitivity", "curvature", "null-space"):
        command = ["nula", "evaluate", study, "--model", "test_classifiers:answer_without_gradient", "--cpu"]
        command += ["--dataset", animals, "--output", str(tmp_path), "--images", "4"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(
            SystemExit, match=r"error: the study needs derivatives, and the model \(function\) has none"
        ):
            main()


@pytest.fixture(scope="module")
def cropping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock ResNet of random weights that sees the middle 48x48 of an image whose shorter side is 64."""
    torch.manual_seed(0)
    labels = dict(enumerate(ANIMALS))
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic",
        id2label=labels, label2id={name: index for index, name in labels.items()},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("cropping")
    ResNetForImageClassification(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}}
    BitImageProcessor(**size, resample=2).save_pretrained(folder)
    return str(folder)


def test_images_at_the_models_size_are_not_cropped_again(animals, cropping):
    classifier, data = load_classifier(cropping, ANIMALS, CPU), load_split(animals, "test")
    pixels, seen = pixels_of(data, classifier, CPU)
    assert pixels.shape == (9, 3, 48, 48)
    with torch.inference_mode():
        whole = torch.cat([classifier(to_pixels(image[None])) for image in data.images])
        torch.testing.assert_close(seen(pixels), whole)


@pytest.mark.parametrize("place", ["data", "model"])
def test_derivatives_are_taken_where_images_are_perturbed(place, animals, cropping):
    data = load_split(animals, "test")
    same = Split.of(torch.stack([data.images[0]] * 2), data.labels[:2], data.names)
    classifier = load_classifier(cropping, ANIMALS, CPU, perturb_at=place)
    norms = sensitivity(classifier, same, CPU, (0.0,))["norms"]["0.0"]
    pixels, function = to_pixels(same.images[:1]), classifier
    if place == "model":
        pixels, function = classifier.resized(pixels), classifier.classify
    assert norms[0] == pytest.approx(torch.func.jacrev(function)(pixels).norm().item(), rel=1e-3)


def flat(pixels: torch.Tensor) -> torch.Tensor:
    values = pixels.view(len(pixels), -1)
    return torch.stack([values.mean(1), values.amax(1), values.amin(1)], dim=1)


def test_a_function_gets_pixels_that_can_be_viewed(pixels):
    torch.testing.assert_close(of_function(flat, 3)(pixels)[:, 0], pixels.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("study", ["curvature", "basin"])
def test_a_function_has_no_parameters_to_differentiate_by(study, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    (tmp_path / "classes.json").write_text(json.dumps({name: index for index, name in enumerate(CIFAR10_LABELS)}))
    command = ["nula", "evaluate", study, "--model", "test_classifiers:ten", "--images", "104", "--cpu"]
    command += ["--start", "test_classifiers:ten"] if study == "basin" else []
    monkeypatch.setattr(sys, "argv", [*command, "--dataset", str(SAMPLE), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: the study needs derivatives, and the model \(function\) has none"):
        main()


def ten(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.mean(dim=(1, 2, 3)).unsqueeze(1) * torch.arange(10)


@pytest.mark.parametrize("batch", ["batch", 1, 7])
def test_an_onnx_file_of_a_fixed_batch(batch, tmp_path, pixels):
    """Its three logits are the means of the channels."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "means.onnx")
    classifier = load_classifier(str(tmp_path / "means.onnx"), ("r", "g", "b"), CPU)
    torch.testing.assert_close(classifier(pixels), pixels.mean(dim=(2, 3)))


def test_the_attack_on_blocks_says_that_it_needs_even_sides():
    with pytest.raises(
        ValueError, match="the attack within 2x2 blocks needs even sides, got 13x20; give --perturb_at model"
    ):
        attack(flat, torch.full((1, 3, 13, 20), 0.5), torch.zeros(1, dtype=torch.long), 0.1, "box", steps=1)


def answer_without_gradient(pixels: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(pixels), 3)


def test_many_classes_are_stored_wider():
    images, labels = torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 299, 255])
    data = Split.of(images, labels, tuple(f"class {index}" for index in range(300)))
    answers = torch.eye(300)[[1, 299, 256]]
    table = evaluate(of_function(lambda pixels: answers, 300), data, table_rows(0)[:1], Accelerator(cpu=True), {})
    assert table.predictions.dtype == table.labels.dtype == np.uint16
    assert table.predictions[0].tolist() == [1, 299, 256]
    assert table.row(table.rows[0]).right.tolist() == [False, True, False]


@pytest.fixture
def tables() -> dict[str, Table]:
    """Three tables of two rows and four images."""
    labels, answers = np.array([0, 1, 1, 0], np.uint8), {"a": [0, 1, 1, 0], "b": [0, 1, 0, 0], "c": [1, 1, 0, 0]}
    return {
        name: Table(
            rows=("Clean (CIFAR-10 Test)", "noise"), seeds=(0, 5), labels=labels, provenance={},
            predictions=np.array([given, [1, 1, 1, 1]], np.uint8),
        )
        for name, given in answers.items()
    }  # fmt: skip


def test_tables_are_compared_in_three_forms(tables):
    assert as_csv(tables).splitlines() == [
        "perturbation,seed,a,b,c",
        "Clean,0,100.00,75.00,50.00",
        "noise,5,50.00,50.00,50.00",
    ]
    assert as_markdown(tables).splitlines() == [
        "| perturbation | a | b | c | b − a | c − a |",
        "|---|--:|--:|--:|--:|--:|",
        "| Clean | 100.00 | 75.00 | 50.00 | −25.00 | −50.00 |",
        "| noise | 50.00 | 50.00 | 50.00 | +0.00 | +0.00 |",
    ]
    text = as_text(tables)
    assert "b against a" in text
    assert "c against a" in text
    assert "Clean                              -50.00   p = 0.5   2 flips" in text


def test_compare_takes_any_number_of_folders(tables, tmp_path, monkeypatch, capsys):
    for name, table in tables.items():
        table.save(tmp_path / name)
    folders = [str(tmp_path / name) for name in tables]

    def compare(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["nula", "evaluate", "compare", *arguments])
        main()
        return capsys.readouterr().out

    assert compare(*folders, "--csv").splitlines()[1] == "Clean,0,100.00,75.00,50.00"
    assert compare(*folders[:2]).count("against") == 1
    for arguments, message in (
        (folders[:1], "at least two folders"),
        ([folders[0], str(tmp_path / "none")], "none holds no table"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            compare(*arguments)
    other = tables["b"].labels.copy()
    other[0] = 1
    Table(**(vars(tables["b"]) | {"labels": other})).save(tmp_path / "b")
    with pytest.raises(SystemExit, match="only tables of the same rows, seeds and images can be compared"):
        compare(*folders)


def test_code_of_a_repository_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    """On a terminal where somebody answers yes to every question."""
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.M"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "mine.py").write_text("open('has_run', 'w')\nfrom transformers import PreTrainedConfig as Config, M\n")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "y")
    with pytest.raises(
        ValueError, match=r"needs Python code of its own repository, which is never run here.*--model pa"
    ):
        load_classifier(str(tmp_path), ("a", "b"), CPU)
    assert not asked
    assert not (tmp_path / "has_run").exists()


def test_a_processor_of_its_own_code_is_not_run_either(vit, tmp_path, monkeypatch):
    shutil.copytree(vit, tmp_path / "own")
    settings = {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Mine"}}
    (tmp_path / "own" / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "own" / "mine.py").write_text("raise SystemExit('this code has run')\n")
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "y")
    with pytest.raises(ValueError, match="needs Python code of its own repository, which is never run here"):
        load_classifier(str(tmp_path / "own"), ANIMALS, CPU)
    assert not asked


def test_a_revision_of_a_hub_id_is_loaded_and_hashed(vit, cropping):
    """Two revisions in the Hub's cache: main, and the tag v2."""
    cached = Path(constants.HF_HUB_CACHE) / "models--owner--two"
    for commit, ref, source in (("a" * 40, "main", vit), ("b" * 40, "v2", cropping)):
        shutil.copytree(source, cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / ref).write_text(commit)
    kinds = {name: load_classifier("owner/two", ANIMALS, CPU, revision=name).kind for name in (None, "main", "v2")}
    vit_kind, resnet_kind = "ViTForImageClassification", "ResNetForImageClassification"
    assert kinds == {None: vit_kind, "main": vit_kind, "v2": resnet_kind}
    assert model_sha256("owner/two") == model_sha256(vit) != model_sha256("owner/two", "v2") == model_sha256(cropping)


def test_the_record_tells_the_revision(animals, vit, tmp_path):
    cached = Path(constants.HF_HUB_CACHE) / "models--owner--one"
    shutil.copytree(vit, cached / "snapshots" / ("c" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "v3").write_text("c" * 40)
    table = evaluated(animals, "owner/one", tmp_path / "results", "--revision", "v3", "--images", "6")
    assert (table.provenance["revision"], table.provenance["weights_sha256"]) == ("v3", model_sha256(vit))
    with pytest.raises(SystemExit, match=r"--revision is of a Hub id; --model .* is none"):
        evaluated(animals, vit, tmp_path / "other", "--revision", "v3")
    with pytest.raises(SystemExit, match="--revision is of one Hub id; give one --model"):
        evaluated(animals, "owner/one", tmp_path / "other", "--revision", "v3", "--model", vit)


def test_a_part_of_the_images_has_every_class_and_is_said_to_be_a_part(animals, vit, tmp_path, capsys):
    """Of a folder, which is sorted by class; three images of each."""
    table = evaluated(animals, vit, tmp_path / "part", "--images", "6")
    assert np.bincount(table.labels).tolist() == [2, 2, 2]
    assert table.labels.tolist() != sorted(table.labels)  # so that parts of them have every class too
    data = table.provenance["dataset"]
    assert (data["images"], data["choice"], data["seed"]) == (6, "stratified", 0)
    assert "6 of 9 images, of each class its share; raw results in" in capsys.readouterr().out
    whole = evaluated(animals, vit, tmp_path / "whole")
    assert "choice" not in whole.provenance["dataset"]
    assert not table.is_comparable(whole)


def test_first_images_of_cifar10_are_not_called_cifar10s(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    (tmp_path / "classes.json").write_text(json.dumps({name: index for index, name in enumerate(CIFAR10_LABELS)}))
    options = ("--images", "100", "--classes", str(tmp_path / "classes.json"))
    table = evaluated(str(SAMPLE), "test_classifiers:ten", tmp_path / "part", *options)
    sample = load_split(str(SAMPLE), "test")
    assert table.provenance["dataset"]["choice"] == "first"
    assert table.origin[0] == sample.first(100).fingerprint
    assert not table.of_cifar10


MINE = (
    Perturbation("Half", "half of each value", lambda x, g: x / 2),
    Perturbation("Noise", "add N(0, 0.1²)", lambda x, g: gaussian_noise(x, 0.1, g)),
    ROWS[0],
)


def test_rows_of_ones_own_are_measured_stored_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "tests")
    (tmp_path / "classes.json").write_text(json.dumps({name: index for index, name in enumerate(CIFAR10_LABELS)}))
    options = ("--classes", str(tmp_path / "classes.json"), "--seed", "5")
    measured = (str(SAMPLE), "test_classifiers:ten", tmp_path / "a", *options)
    table = evaluated(*measured, "--rows", "test_classifiers:MINE")
    assert (table.rows, table.seeds) == (("Half", "Noise", "Clean (CIFAR-10 Test)"), (5, 5, 5))
    halved = ten(to_pixels(load_split(str(SAMPLE), "test").images) / 2)
    np.testing.assert_allclose(table.logits[0], halved.numpy(), atol=1e-5)
    assert table.provenance["rows"] == {
        "from": "test_classifiers:MINE",
        "definitions": {row.name: row.definition for row in MINE},
    }
    assert "Half                               seed 5 " in capsys.readouterr().out
    assert as_markdown({"a": table, "b": Table.load(tmp_path / "a")}).splitlines()[2].startswith("| Half |")
    with pytest.raises(
        SystemExit, match=r"holds results of .*rows test_classifiers:MINE; these are of .* Give another"
    ):
        evaluated(*measured)


def test_results_of_another_model_or_data_are_not_replaced_before_anything_is_measured(
    animals, vit, cropping, tmp_path, monkeypatch
):
    first = evaluated(animals, vit, tmp_path)
    again = evaluated(animals, vit, tmp_path)  # the same model
    assert np.array_equal(first.predictions, again.predictions)
    before = (tmp_path / "predictions.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("nula.evaluation.measuring.predict", lambda *arguments: pytest.fail("it is measured"))
        refused = f"{tmp_path} holds results of .*vit.* on 9 images of animals.*; these are of .*cropping.* --overwrite"
        with pytest.raises(SystemExit, match=refused):
            evaluated(animals, cropping, tmp_path)
        with pytest.raises(SystemExit, match=r"on 9 images of .*; these are of .* on 6 images of "):
            evaluated(animals, vit, tmp_path, "--images", "6")
    assert (tmp_path / "predictions.npz").read_bytes() == before
    replaced = evaluated(animals, cropping, tmp_path, "--overwrite")
    assert replaced.provenance["weights_sha256"] == model_sha256(cropping)


@pytest.mark.parametrize(
    ("study", "file", "options"),
    [
        ("sensitivity", "sensitivity.json", ("--images", "4")),
        ("null-space", "null_space/provenance.json", ("--images", "4")),
        ("certified", "certified.json", ("--images", "4", "--draws", "5")),
        ("curvature", "curvature.json", ("--images", "4", "--subsets", "2")),
        ("noise", "noise/provenance.json", ("--draws", "2")),
    ],
)
def test_no_study_replaces_the_results_of_another_model(study, file, options, animals, cropping, tmp_path, monkeypatch):
    record = {"model": "another", "weights_sha256": "0" * 64, "dataset": {"name": "data", "images": 3, "sha256": "1"}}
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(record if file.endswith("provenance.json") else {"provenance": record}))
    command = ["nula", "evaluate", study, "--model", cropping, "--dataset", animals, "--output", str(tmp_path), "--cpu"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    with pytest.raises(SystemExit, match=r"holds results of another \(weights 000000000000\) on 3 images of data"):
        main()


def test_a_place_that_cannot_be_written_to_is_told_of_before_anything_is_measured(animals, vit, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("nula.evaluation.measuring.predict", lambda *arguments: pytest.fail("it is measured"))
    with pytest.raises(SystemExit, match=r"error: --output .*file/results cannot be written: Not a directory"):
        evaluated(animals, vit, tmp_path / "file" / "results")


def test_many_classes_are_stored_read_and_compared(tmp_path):
    images, labels = torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 299, 255])
    data = Split.of(images, labels, tuple(f"class {index}" for index in range(300)))
    tables = {}
    for name, answers in (("a", [0, 299, 255]), ("b", [256 + 0, 299 - 256, 255])):  # the same in eight bits
        logits = torch.eye(300)[answers]
        classifier = of_function(lambda pixels, logits=logits: logits, 300)
        evaluate(classifier, data, table_rows(0)[:1], Accelerator(cpu=True), {}).save(tmp_path / name)
        tables[name] = Table.load(tmp_path / name)
        assert tables[name].predictions[0].tolist() == answers
    assert as_csv(tables).splitlines()[1] == "Clean,0,100.00,33.33"
    assert "2 flips" in as_text(tables)
