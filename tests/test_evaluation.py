"""The table of any classifier: raw, resumable, the same on any number of processes; and what is derived from it."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, SAMPLE
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from nula.cli import main
from nula.configuration_nula import CIFAR10_LABELS
from nula.data import Split, to_pixels
from nula.evaluation.claims import CLAIMS
from nula.evaluation.classifiers import load_classifier, of_function
from nula.evaluation.measuring import PROBED, Measurement, evaluate, predict, table_rows
from nula.evaluation.monte_carlo import correct_draws, gap, noise_rows
from nula.evaluation.processing import processing_of
from nula.evaluation.studies import STUDIES, basin, corruptions
from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.figures import PICTURES
from nula.perturbations.suite import ROWS
from nula.records.release import Release, Results
from nula.records.statistics import (
    calibration,
    class_accuracies,
    confusion_matrix,
    flips,
    mcnemar_p,
    variance_ratio_interval,
    wilson_interval,
)
from nula.records.table import Table
from nula.records.weights import load_model, weights_sha256


def channel_means(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.mean(dim=(2, 3))


brightest_channel = of_function(channel_means, 3)  # three "classes"


def test_a_table_is_stored_raw_and_read_again(test_split, tmp_path):
    table = evaluate(brightest_channel, test_split, table_rows(0), Accelerator(cpu=True), {"a": 1}, keep_logits=True)
    table.save(tmp_path)
    loaded = Table.load(tmp_path)
    assert loaded.rows == tuple(row.name for row in ROWS)
    assert loaded.provenance["a"] == 1
    assert loaded.provenance["forward_seconds"] <= loaded.provenance["seconds"]
    assert np.array_equal(loaded.predictions, table.predictions)
    pixels = test_split.images.permute(0, 3, 1, 2).float() / 255
    expected = channel_means(pixels).argmax(1)
    assert np.array_equal(loaded.predictions[0], expected)
    np.testing.assert_allclose(loaded.logits[0], channel_means(pixels), atol=1e-3)
    correct = (expected == test_split.labels).sum().item()
    assert loaded.accuracies()["Clean (CIFAR-10 Test)"] == pytest.approx(100 * correct / 200)
    gray = loaded.predictions[loaded.rows.index("Grayscale (Full Mix)")]
    assert (gray == 0).all()  # three equal channels


def test_what_was_measured_before_an_interruption_is_not_measured_again(test_split, tmp_path):
    rows, asked = table_rows(0), []

    def classify(pixels):
        if len(pixels) > PROBED:
            asked.append(len(pixels))
            if len(asked) == 8:
                raise KeyboardInterrupt
        return channel_means(pixels)

    classifier = of_function(classify, 3)
    arguments = (test_split, rows, Accelerator(cpu=True), {"weights": "x", "date": "today"})
    with pytest.raises(KeyboardInterrupt):
        evaluate(classifier, *arguments, folder=tmp_path)
    [kept] = tmp_path.iterdir()
    assert len(list(kept.glob("0*.npz"))) == 7
    resumed = evaluate(classifier, *arguments[:-1], {"weights": "x", "date": "tomorrow"}, folder=tmp_path)
    assert len(asked) == 8 + 13
    assert np.array_equal(resumed.predictions, evaluate(brightest_channel, *arguments).predictions)
    evaluate(classifier, *arguments[:-1], {"weights": "y"}, folder=tmp_path)
    assert len(asked) == 8 + 13 + 20  # other weights start afresh
    assert not list(tmp_path.iterdir())  # removed when done


def test_rows_of_another_classifier_image_or_operator_are_not_taken(test_split, tmp_path):
    """Without a provenance that tells them apart, and with names that are the same."""
    data = test_split.first(50)
    seen = []

    def rows(factor):
        def apply(pixels, generator):
            if len(pixels) > PROBED:
                seen.append(factor)
                if len(seen) == 2:
                    raise KeyboardInterrupt
            return pixels * factor

        return [Measurement(name=name, apply=apply) for name in ("first", "second")]

    first, other = of_function(channel_means, 3), of_function(lambda pixels: -channel_means(pixels), 3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, data, rows(0.5), Accelerator(cpu=True), {}, folder=tmp_path)
    for classifier, images, factor, expected in (
        (other, data, 0.5, 2),
        (first, Split.of(255 - data.images, data.labels, data.names), 0.5, 2),
        (first, data, 0.25, 2),
        (first, data, 0.5, 1),  # and what was measured is
    ):
        seen[:] = [None] * 3
        table = evaluate(classifier, images, rows(factor), Accelerator(cpu=True), {}, folder=tmp_path)
        assert len(seen) == 3 + expected
        assert np.array_equal(table.predictions[1], classifier(to_pixels(images.images) * factor).argmax(1))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500])
@pytest.mark.parametrize("place", ["data", "model"])
def test_answers_and_noise_are_the_same_for_any_batch_size(test_split, batch_size, place):
    largest = []

    def classify(pixels):
        largest.append(len(pixels))
        return channel_means(pixels)

    classifier = of_function(classify, 3)
    classifier.perturb_at = place
    expected, _ = predict(classifier, test_split.images, table_rows(0)[-1], Accelerator(cpu=True))
    largest.clear()
    logits, _ = predict(classifier, test_split.images, table_rows(0)[-1], Accelerator(cpu=True), batch_size)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    assert max(largest) == min(batch_size, 200)
    assert sum(largest) == 200


def test_logits_that_are_not_finite_are_refused(test_split):
    classifier = of_function(lambda pixels: channel_means(pixels) * float("nan"), 3)

    with pytest.raises(ValueError, match=r"logits under Clean \(CIFAR-10 Test\) are not all finite"):
        evaluate(classifier, test_split, table_rows(0), Accelerator(cpu=True), {})


def test_two_processes_count_as_one(tmp_path, tiny_folder):
    """Blocks of 64 images, of which the last is shorter: 200 images are four blocks."""
    code = (
        "import sys; from nula.evaluation import measuring; measuring.BLOCK = 64; "
        "from nula.cli import main; sys.argv[:1] = ['nula', 'evaluate']; main()"
    )
    (tmp_path / "blocks.py").write_text(code)
    tables = []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        arguments = ["table", "--model", str(tiny_folder), "--dataset", str(SAMPLE), "--output", str(output)]
        subprocess.run(
            [sys.executable, *launcher, str(tmp_path / "blocks.py"), *arguments, "--cpu"],
            check=True,
            cwd=ROOT,
            capture_output=True,
            timeout=300,
        )
        tables.append(Table.load(output))
        assert not list(output.glob("partial-*"))
        with np.load(output / "golden.npz") as golden:
            np.testing.assert_allclose(golden["logits"], tables[-1].logits[0, :16], atol=1e-5)
        assert set(json.loads((output / "calibration.json").read_text())["rows"]) == set(tables[-1].rows)
    assert tables[0].predictions.shape == (20, 200)
    for table in tables[1:]:
        assert np.array_equal(table.predictions, tables[0].predictions)
        assert np.array_equal(table.logits, tables[0].logits)


def test_every_command_leaves_results_that_the_claims_are_read_from(
    tmp_path, tiny_folder, test_split, monkeypatch, capsys
):
    """All studies of two models on the sample, through the command line, then every picture and claim."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["nula", "evaluate", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    monkeypatch.setattr(basin, "LINE_BATCH", 10)
    monkeypatch.setattr(corruptions, "CORRUPTIONS", ("fog",))
    other = load_model(tiny_folder)
    with torch.no_grad():
        other.classifier.weight.add_(0.05 * torch.randn(other.classifier.weight.shape))
    models = {"v0": tiny_folder, "v1": tmp_path / "other"}
    other.save_pretrained(models["v1"])
    NulaImageProcessor().save_pretrained(models["v1"])
    results = {version: tmp_path / version for version in models}
    for version, model in models.items():
        common = ("--model", model, "--dataset", SAMPLE, "--output", results[version], "--cpu")
        assert "Grayscale (Full Mix)" in call("table", *common)
        assert "seed 1 " in call("noise", *common, "--draws", 2)
        assert "fog 5" in call("corruptions", *common)
        call("sensitivity", *common, "--images", 4)
        call("curvature", *common, "--images", 4, "--subsets", 2)
        assert "box ε = 8/255" in call("null-space", *common, "--images", 4)
        call("certified", *common, "--images", 2, "--draws", 10)
    assert "measured anew" in call("basin", *common, "--start", models["v0"], "--images", 120)
    assert "flips" in call("compare", *results.values())
    printed = call("claims", *results.values())
    assert printed.count("\n    ") == len(CLAIMS)
    assert "not measured" not in printed
    settings = {"hub_id": "owner/net", "published": None, "summary": "A net.", "script": "train.py", "recipe": {}}
    releases = {
        name: Release(
            name=name,
            folder=model,
            results=Results(results[name]),
            parent="v0" if name == "v1" else None,
            color="#000000",
            **settings,
        )
        for name, model in models.items()
    }
    for picture in PICTURES:
        assert all(axes.has_data() for axes in picture.draw(releases, test_split).axes)


@pytest.mark.parametrize(("model", "has_parent"), [("tiny", False), ("releases/v1", True)])
def test_all_studies_run_with_their_own_settings(tiny_folder, tmp_path, monkeypatch, model, has_parent):
    ran = {}
    noted = [replace(study, run=lambda session, name=study.name: ran.update({name: session})) for study in STUDIES]
    monkeypatch.setattr("nula.evaluation.command.STUDIES", noted)
    name = str(ROOT / model) if has_parent else str(tiny_folder)
    arguments = ["studies", "--model", name, "--dataset", str(SAMPLE), "--output", str(tmp_path), "--cpu"]
    monkeypatch.setattr(sys, "argv", ["nula", "evaluate", *arguments])
    main()
    expected = [study.name for study in STUDIES if study.name != "table" and (has_parent or not study.of_pair)]
    assert list(ran) == expected
    assert (ran["sensitivity"].arguments.images, ran["curvature"].arguments.images) == (1000, 192)
    for study, session in ran.items():
        assert session.arguments.study == study
        assert session.models == [(name, tmp_path)]


def test_a_study_takes_what_images_there_are(tiny_folder, tmp_path, monkeypatch, capsys):
    arguments = [
        "sensitivity",
        "--model",
        str(tiny_folder),
        "--dataset",
        str(SAMPLE),
        "--output",
        str(tmp_path),
        "--cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["nula", "evaluate", *arguments])  # its thousand images, of two hundred
    main()
    assert json.loads((tmp_path / "sensitivity.json").read_text())["provenance"]["dataset"]["images"] == 200
    assert f"raw results in {tmp_path}/sensitivity.json" in capsys.readouterr().out


def test_the_line_starts_from_the_weights_that_a_release_was_tuned_from(tmp_path, monkeypatch):
    for name in ("v0", "v1"):
        shutil.copytree(ROOT / "releases" / name, tmp_path / name, ignore=shutil.ignore_patterns("results", "seeds"))
    start = basin._start_of
    session = SimpleNamespace(arguments=SimpleNamespace(start=None))
    assert start(session, str(tmp_path / "v1")) == str(tmp_path / "v0")
    shutil.copy(tmp_path / "v1" / "model.safetensors", tmp_path / "v0")
    with pytest.raises(ValueError, match=r"give --start: .*v1 was fine-tuned from other weights than those in .*v0"):
        start(session, str(tmp_path / "v1"))
    with pytest.raises(ValueError, match=r"give --start, the model that .*v0 was fine-tuned from; no release tells it"):
        start(session, str(tmp_path / "v0"))
    session.arguments.start = "another"
    assert start(session, str(tmp_path / "v1")) == "another"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noise", "--draws", "1"), "'1' must be an integer of at least 2"),
        (("curvature", "--subsets", "0"), "'0' must be an integer of at least 2"),
        (("basin", "--images", "100"), "'100' must be an integer of at least 101"),
    ],
)
def test_too_few_to_tell_a_spread_are_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nula", "evaluate", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


def test_an_interrupted_command_goes_on_after_the_last_finished_row(tiny_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_folder, tmp_path / "other")
    models = ["--model", str(tiny_folder), "--model", str(tmp_path / "other")]
    arguments = ["table", *models, "--dataset", str(SAMPLE), "--output", str(tmp_path / "results"), "--cpu"]
    monkeypatch.setattr(sys, "argv", ["nula", "evaluate", *arguments])
    rows = []

    def counted(*arguments):
        rows.append(1)
        if len(rows) == 22:  # the second row of the second model
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr("nula.evaluation.measuring.predict", counted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130
    assert "interrupted; the same command goes on after the last finished row" in capsys.readouterr().err
    main()
    assert len(rows) == 22 + 19
    assert len(list((tmp_path / "results").glob("*/provenance.json"))) == 2
    assert not list((tmp_path / "results").glob("*/partial-*"))


@pytest.mark.parametrize("name", ["runs/none", "{folder}/none"])
def test_a_folder_that_is_not_there_is_told_of(name, tmp_path):
    name = name.format(folder=tmp_path)
    with pytest.raises(OSError, match=f"there is no folder {name} here, and as a Hub id it gives: "):
        load_classifier(name, CIFAR10_LABELS, torch.device("cpu"))
    with pytest.raises(OSError, match=f"there is no folder {name} here, and as a Hub id it gives: "):
        load_model(name)
    with pytest.raises(OSError, match=r"no file named model\.safetensors") as empty:
        load_model(tmp_path)
    assert "there is no folder" not in str(empty.value)


def test_weights_have_one_name_whatever_their_files(tiny_folder, tmp_path):
    model = load_model(tiny_folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    named = weights_sha256(tmp_path / "shards")
    assert named == weights_sha256(tmp_path / "shards") != weights_sha256(tiny_folder)
    (tmp_path / "pickled").mkdir()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    assert len(weights_sha256(tmp_path / "pickled")) == 64
    with pytest.raises(OSError, match=r"model\.safetensors"):
        weights_sha256(tmp_path)


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory):
    """A stock ResNet of random weights with CIFAR-10's classes in reverse, at 48 pixels, with another mean and std."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(reversed(CIFAR10_LABELS))),
        label2id={label: index for index, label in enumerate(reversed(CIFAR10_LABELS))},
    )
    folder = tmp_path_factory.mktemp("resnet")
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": 48, "width": 48}, resample=2, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
    ).save_pretrained(folder)
    return folder


def test_a_stock_classifier_goes_through_the_table(stock_folder, test_split):
    classifier = load_classifier(str(stock_folder), CIFAR10_LABELS, torch.device("cpu"))
    table = evaluate(classifier, test_split, table_rows(0), Accelerator(cpu=True), {})
    assert table.predictions.shape == (20, 200)
    model = ResNetForImageClassification.from_pretrained(stock_folder).eval()
    pixels = test_split.images.permute(0, 3, 1, 2).float() / 255
    enlarged = torch.nn.functional.interpolate(pixels, (48, 48), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.inference_mode():
        reversed_answers = model((enlarged - mean) / std).logits.argmax(1)
    assert np.array_equal(table.predictions[0], 9 - reversed_answers)


def test_preprocessing_is_the_processors_own(test_split):
    processor = ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.5, resample=2)
    images = test_split.images[:4]
    expected = processor(images.numpy(), return_tensors="pt", input_data_format="channels_last").pixel_values
    processing = processing_of(processor)
    ours = processing.normalized(processing.resized(images.permute(0, 3, 1, 2).float() / 255))
    assert ours.shape == expected.shape == (4, 3, 64, 64)
    assert (ours - expected).abs().max() < 0.02  # theirs rounds to bytes between resizing and normalising


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(do_rescale=False),
        ViTImageProcessor(rescale_factor=1 / 127.5),
        ViTImageProcessor(resample=0),
        ViTImageProcessor(size={"height": 64, "width": 64}, do_pad=True, pad_size={"height": 80, "width": 80}),
        MobileViTImageProcessor(),  # blue comes first
    ],
)
def test_a_processor_that_does_something_else_is_refused(processor):
    with pytest.raises(ValueError, match="does more than resize"):
        processing_of(processor)


def test_weights_that_do_not_fit_are_refused(stock_folder, tmp_path):
    shutil.copytree(stock_folder, tmp_path / "headless")
    tensors = load_file(tmp_path / "headless" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(kept, tmp_path / "headless" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit the model"):
        load_classifier(str(tmp_path / "headless"), CIFAR10_LABELS, torch.device("cpu"))


def test_another_number_of_classes_is_refused(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no class for 'airplane', .*; it has 'LABEL_0', 'LABEL_1', 'LABEL_2'"):
        load_classifier(str(tmp_path), CIFAR10_LABELS, torch.device("cpu"))


def test_wilson_intervals():
    low, high = wilson_interval(8, 10)  # the closed form, by hand
    z, n, p = 1.959964, 10, 0.8
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5,
    )
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_mcnemar_is_the_binomial_test_of_the_discordant_images():
    a = np.array([True] * 50 + [False] * 8 + [True] * 2 + [False] * 40)
    b = np.array([True] * 50 + [True] * 8 + [False] * 2 + [False] * 40)
    tail = sum([1, 10, 45]) / 2**10  # 0, 1 or 2 of 10 coins
    assert mcnemar_p(a, b) == pytest.approx(2 * tail)
    assert mcnemar_p(b, a) == pytest.approx(2 * tail)
    assert mcnemar_p(a, a) == 1.0


def test_confusion_class_accuracies_and_flips():
    labels, first = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert confusion_matrix(labels, first, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert class_accuracies(labels, first, 3).tolist() == [0.5, 1.0, 0.0]
    assert np.isnan(class_accuracies(labels, first, 4)[3])
    assert flips(first, np.array([0, 0, 1, 2])).tolist() == [1, 3]


def test_calibration_by_hand():
    # Two classes: probabilities 0.8 and 0.6 for the first, both labelled 0 and 1.
    logits = np.log(np.array([[0.8, 0.2], [0.6, 0.4]]))
    result = calibration(logits, np.array([0, 1]))
    assert result.expected_calibration_error == pytest.approx((0.2 + 0.6) / 2)
    assert result.negative_log_likelihood == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert result.brier_score == pytest.approx((0.04 + 0.04 + 0.36 + 0.36) / 2)


def test_calibration_errors_of_a_bin_cancel():
    # 0.71 and 0.72 share the bin (0.667, 0.733]: one is right, one is wrong, so their 50 % is compared with 71.5 %.
    # 2/3 is the upper edge of the bin before, where it is right with certainty.
    confidence = np.array([0.71, 0.72, 2 / 3 - 1e-12])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    result = calibration(logits, np.array([0, 1, 0]))
    assert result.expected_calibration_error == pytest.approx((2 * 0.215 + 1 / 3) / 3)
    assert calibration(logits, np.array([0, 1, 0]), bins=1000).expected_calibration_error == pytest.approx(
        (0.29 + 0.72 + 1 / 3) / 3
    )


def test_the_interval_of_a_ratio_of_variances_covers_it():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(2000, 2, 4)) * np.array([[3.0], [1.0]])
    low, high = np.array([variance_ratio_interval(a, b) for a, b in samples]).T
    assert ((low <= 9) & (high >= 9)).mean() == pytest.approx(0.95, abs=0.02)


def test_every_realisation_is_another_and_the_same_for_every_model(test_split):
    few = test_split.first(50)
    seen = []

    def remember(pixels):
        seen.append(pixels.clone())
        return channel_means(pixels)

    rows = noise_rows(draws=2, sweep=(0.05, 0.1))
    assert [(row.name, row.seed) for row in rows] == [
        ("Gaussian Noise σ = 0.05", 0),
        ("Gaussian Noise σ = 0.05", 1),
        ("Gaussian Noise σ = 0.1", 0),
    ]
    for _ in range(2):
        table = evaluate(of_function(remember, 3), few, rows, Accelerator(cpu=True), {})
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])
    clean = few.images.permute(0, 3, 1, 2).float() / 255
    inside = (clean > 0.45) & (clean < 0.55)  # far from clamping
    torch.testing.assert_close(2 * (seen[0] - clean)[inside], (seen[2] - clean)[inside], atol=1e-5, rtol=0)
    assert correct_draws(table).shape == (2, 50)
    with pytest.raises(ValueError, match=r"no realisation at σ = 0\.2"):
        correct_draws(table, 0.2)


def test_a_gap_by_hand():
    a = np.array([[1, 0, 0, 1], [1, 1, 0, 1]], dtype=bool)
    b = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    result = gap(a, b, tolerance=10)
    assert result.running.tolist() == [[0, 50, pytest.approx(100 / 3), 25], [0, 0, pytest.approx(100 / 3), 25]]
    assert (result.mean, result.std, result.interval) == (25, 0, (25, 25))
    assert result.settled == 3  # 33.3 is within 10 of 25, 0 is not
    with pytest.raises(ValueError, match="two or more realisations"):
        gap(a[:1], b[:1])
