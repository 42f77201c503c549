"""Calibrated scores: their temperature is fitted on images held out, kept in the configuration, applied on request."""

import json

import numpy as np
import pytest
from conftest import CAT, SAMPLE
from PIL import Image
from scipy.special import softmax
from test_training import run_here

from nula.cli import main
from nula.configuration_nula import NulaConfig
from nula.evaluation.classifiers import load_classifier
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.records.statistics import calibration, fit_temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_logits_that_were_scaled_is_their_scale(temperature):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    labels = np.array([rng.choice(5, p=chances) for chances in softmax(logits, axis=1)])
    scaled = temperature * logits
    fitted = fit_temperature(scaled, labels)
    assert fitted == pytest.approx(temperature, rel=0.03)
    assert calibration(scaled / fitted, labels).expected_calibration_error < 0.02
    best = calibration(scaled / fitted, labels).negative_log_likelihood
    for other in (0.98 * fitted, 1.02 * fitted):
        assert best < calibration(scaled / other, labels).negative_log_likelihood


@pytest.fixture
def with_temperature(tiny_model, tmp_path):
    """The folder of a model whose configuration has a temperature of 0.5."""
    config = NulaConfig(**{**tiny_model.config.to_dict(), "calibration_temperature": 0.5})
    model = NulaForImageClassification(config).eval()
    model.load_state_dict(tiny_model.state_dict())
    model.save_pretrained(tmp_path / "tempered")
    NulaImageProcessor().save_pretrained(tmp_path / "tempered")
    return tmp_path / "tempered"


def test_calibrated_scores_are_a_softmax_of_divided_logits(with_temperature):
    model = NulaForImageClassification.from_pretrained(with_temperature)
    assert model.config.calibration_temperature == 0.5
    pipe = NulaImageClassificationPipeline(model=model, image_processor=NulaImageProcessor())
    logits = pipe(CAT, top_k=10, function_to_apply="none")
    expected = softmax(np.array([entry["score"] for entry in logits]) / 0.5)
    calibrated = pipe(CAT, top_k=10, calibrated=True)
    assert [entry["label"] for entry in calibrated] == [entry["label"] for entry in logits]
    np.testing.assert_allclose([entry["score"] for entry in calibrated], expected, rtol=1e-5)
    assert pipe(CAT, calibrated=False) == pipe(CAT) != pipe(CAT, calibrated=True)
    assert pipe(CAT, calibrated=True, function_to_apply="softmax") == pipe(CAT, calibrated=True)
    always = NulaImageClassificationPipeline(model=model, image_processor=NulaImageProcessor(), calibrated=True)
    assert always(Image.open(CAT)) == pipe(CAT, calibrated=True)
    assert always(CAT, calibrated=False) == pipe(CAT)


def test_calibrated_scores_that_cannot_be_given_are_refused(with_temperature, tiny_model):
    processor = NulaImageProcessor()
    plain = NulaImageClassificationPipeline(model=tiny_model, image_processor=processor)
    with pytest.raises(
        ValueError, match="calibrated scores need a temperature, and the model's configuration has none"
    ):
        plain(CAT, calibrated=True)
    model = NulaForImageClassification.from_pretrained(with_temperature)
    pipe = NulaImageClassificationPipeline(model=model, image_processor=processor)
    with pytest.raises(ValueError, match="calibrated must be True or False, got 'yes'"):
        pipe(CAT, calibrated="yes")
    with pytest.raises(ValueError, match="calibrated scores are those of softmax, not of 'sigmoid'"):
        pipe(CAT, calibrated=True, function_to_apply="sigmoid")
    with pytest.raises(ValueError, match="calibration_temperature must be a positive number, got 0"):
        NulaConfig(calibration_temperature=0)


def call(monkeypatch, *arguments) -> int | None:
    monkeypatch.setattr("sys.argv", ["nula", *map(str, arguments)])
    return main()


def test_the_command_gives_calibrated_scores(with_temperature, tiny_folder, tmp_path, monkeypatch, capsys):
    answers = {}
    for options in ((), ("--calibrated",)):
        assert call(monkeypatch, "classify", CAT, "--model", with_temperature, "--json", *options) == 0
        answers[options] = json.loads(capsys.readouterr().out)["answers"]
    assert [a["label"] for a in answers[()]] == [a["label"] for a in answers["--calibrated",]]
    assert answers[()][0]["score"] < answers["--calibrated",][0]["score"]  # as it is divided by less than one
    output = tmp_path / "answers.json"
    assert call(monkeypatch, "classify", CAT, "--model", tiny_folder, "--calibrated", "--output", output) == 2
    assert "calibrated scores need a temperature" in capsys.readouterr().err
    assert not output.exists()


def test_a_table_tells_how_calibrated_the_scores_are_with_and_without(with_temperature, tmp_path, monkeypatch, capsys):
    data = ("--dataset", SAMPLE, "--images", "40", "--cpu")
    call(monkeypatch, "evaluate", "table", "--model", with_temperature, *data, "--output", tmp_path / "results")
    record = json.loads((tmp_path / "results" / "calibration.json").read_text())
    assert record["temperature"] == 0.5
    assert record["rows"].keys() == record["calibrated_rows"].keys()
    assert record["rows"] != record["calibrated_rows"]


def test_a_run_on_all_images_takes_the_temperature_of_one_that_held_some_out(tmp_path, capsys):
    run_here(tmp_path / "held", "--validation_images", "64")
    fitted = json.loads((tmp_path / "held" / "training.json").read_text())
    run_here(tmp_path / "all", "--temperature_of", tmp_path / "held")
    record = json.loads((tmp_path / "all" / "training.json").read_text())
    assert record["temperature"] == fitted["temperature"]
    assert record["temperature_of"] == fitted["weights_sha256"] != record["weights_sha256"]
    for folder in ("held", "all"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["calibration_temperature"] == fitted["temperature"]
        classifier = load_classifier(str(tmp_path / folder), None, "cpu")
        assert classifier.temperature == fitted["temperature"]
    with pytest.raises(
        SystemExit, match=r"error: --temperature_of .*all is no folder of a run with --validation_images"
    ):
        run_here(tmp_path / "other", "--temperature_of", tmp_path / "all")
    with pytest.raises(SystemExit, match="error: --temperature_of is of runs without --validation_images"):
        run_here(tmp_path / "other", "--temperature_of", tmp_path / "held", "--validation_images", "64")
