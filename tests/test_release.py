"""The payload that goes to the Hub, and what the result files say in the card and the README."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, run_without_nula
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from nula.evaluation.accuracy import Table, evaluate, table_rows
from nula.evaluation.classifiers import load_classifier
from nula.image_processing_nula import NulaImageProcessor, normalize
from nula.model_card.card import BEGIN, pictures, render_card, with_results
from nula.model_card.release import assemble
from nula.model_card.tables import published, results_table
from nula.modeling_nula import NulaForImageClassification
from nula.perturbations.suite import ROWS
from nula.weights import weights_sha256

CODE = {"configuration_nula.py", "modeling_nula.py", "image_processing_nula.py", "pipeline_nula.py"}
PAYLOAD = CODE | {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
RELEASES = ROOT / "releases"

LOGITS = """
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
model, images, output = sys.argv[1:]
model, processor = (kind.from_pretrained(model, trust_remote_code=True)
                    for kind in (AutoModelForImageClassification, AutoImageProcessor))
torch.set_num_threads(1)
with torch.no_grad():
    logits = model.eval()(**processor(np.load(images), return_tensors="pt")).logits
np.save(output, logits.numpy())
"""


def remote_logits(folder: Path, images: np.ndarray, workplace: Path) -> np.ndarray:
    """Logits of the folder's remote code in a fresh process that cannot import `nula`."""
    np.save(workplace / "images.npy", images)
    run_without_nula(LOGITS, workplace, folder, workplace / "images.npy", workplace / "logits.npy")
    return np.load(workplace / "logits.npy")


def test_the_payload_holds_its_files_and_the_released_weights(payload):
    drawn = {f"figures/{name}.png" for name in pictures(RELEASES)}
    files = [file for file in payload.rglob("*") if file.is_file()]
    assert {file.relative_to(payload).as_posix() for file in files} == PAYLOAD | drawn
    assert drawn
    assert all(f"]({name})" in (payload / "README.md").read_text() for name in drawn)
    for name in CODE:
        assert (payload / name).read_text() == (ROOT / name).read_text()
    config = json.loads((payload / "config.json").read_text())
    assert config["architectures"] == ["NulaForImageClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_nula.NulaConfig",
        "AutoModelForImageClassification": "modeling_nula.NulaForImageClassification",
    }
    assert config["custom_pipelines"]["image-classification"] == {
        "impl": "pipeline_nula.NulaImageClassificationPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
    processor = json.loads((payload / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_nula.NulaImageProcessor"}
    released, shipped = (load_file(folder / "model.safetensors") for folder in (RELEASES / "v1", payload))
    assert released.keys() == shipped.keys()
    assert all(torch.equal(released[name], shipped[name]) for name in released)
    for file in files:
        assert str(ROOT).encode() not in file.read_bytes()


def test_remote_code_gives_the_same_logits_to_the_bit(payload, test_split, tmp_path):
    images = test_split.images[:16].numpy()
    model, processor = (kind.from_pretrained(payload) for kind in (NulaForImageClassification, NulaImageProcessor))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            local = model.eval()(**processor(images, return_tensors="pt")).logits
    finally:
        torch.set_num_threads(threads)
    remote = remote_logits(payload, images, tmp_path)
    assert np.array_equal(remote, local.numpy())
    assert (remote.argmax(1) == test_split.labels[:16].numpy()).mean() >= 0.75


def test_saved_again_by_somebody_else_it_stays_complete(payload, test_split, tmp_path):
    code = """
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
source, through_parts, through_pipeline = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True)
with torch.no_grad():
    model.classifier.bias += 1
model.save_pretrained(through_parts)
AutoImageProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(through_parts)
pipeline("image-classification", model=source, trust_remote_code=True).save_pretrained(through_pipeline)
print(type(pipeline("image-classification", model=through_parts, trust_remote_code=True)).__name__)
print(type(pipeline("image-classification", model=through_pipeline, trust_remote_code=True)).__name__)
"""
    parts, piped = tmp_path / "parts", tmp_path / "piped"
    printed = run_without_nula(code, tmp_path, payload, parts, piped)
    assert printed.split() == ["NulaImageClassificationPipeline"] * 2
    for folder in (parts, piped):
        assert {file.name for file in folder.iterdir()} == PAYLOAD - {"README.md"}
    images = test_split.images[:4].numpy()
    original = remote_logits(payload, images, tmp_path)
    assert np.array_equal(remote_logits(piped, images, tmp_path), original)
    np.testing.assert_allclose(remote_logits(parts, images, tmp_path), original + 1, atol=1e-5)


def test_assembling_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors; train v1"):
        assemble("v1", tmp_path, tmp_path / "build")


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_stored_predictions_are_those_of_the_released_weights(version, test_split):
    table = Table.load(RELEASES / version / "results")
    assert table.predictions.shape == (20, 10_000)
    assert np.array_equal(table.labels[:200], test_split.labels)
    classifier = load_classifier(str(RELEASES / version), torch.device("cpu"))
    again = evaluate(classifier, test_split, table_rows(seed=0), Accelerator(cpu=True), {})
    differing = (again.predictions != table.predictions[:, :200]).sum(axis=1)
    assert differing.max() <= 1  # rounding on another machine


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_results_were_measured_on_the_released_weights(version):
    provenance = json.loads((RELEASES / version / "results" / "provenance.json").read_text())
    assert provenance["weights_sha256"] == weights_sha256(RELEASES / version)


# By less than the standard error of either figure; README says so.
MISSED = pytest.mark.xfail(reason="v0 is below the published v0 in grayscale", strict=True)


@pytest.mark.parametrize(
    ("version", "row"),
    [
        pytest.param(version, row.name, marks=[MISSED] if (version, row.name) == ("v0", "Grayscale (Full Mix)") else [])
        for version in ("v0", "v1")
        for row in ROWS
    ],
)
def test_every_row_is_above_the_published_one(version, row):
    accuracies, bars = Table.load(RELEASES / version / "results").accuracies(), published(version)
    assert set(bars) == set(accuracies)
    assert accuracies[row] > bars[row]


def test_fine_tuning_buys_noise_and_costs_little():
    v0, v1 = (Table.load(RELEASES / version / "results").accuracies() for version in ("v0", "v1"))
    changes = {name: v1[name] - v0[name] for name in v0}
    assert changes["Gaussian Noise σ = 0.05"] >= 1.0
    assert min(changes.values()) > -1.0


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """The releases, but v1 is right on every clean image and was trained with another seed."""
    for version in ("v0", "v1"):
        shutil.copytree(RELEASES / version, tmp_path / version, ignore=shutil.ignore_patterns("*.safetensors"))
    table = Table.load(RELEASES / "v1" / "results")
    table.predictions[0] = table.labels
    table.save(tmp_path / "v1" / "results")
    record = json.loads((RELEASES / "v1" / "training.json").read_text()) | {"seed": 4711}
    record["hardware"]["processes"] = 7
    record |= {"images_per_second": 1234.0, "peak_share": 0.987}
    (tmp_path / "v1" / "training.json").write_text(json.dumps(record))
    return tmp_path


def test_card_and_readme_follow_the_result_files(altered):
    card = render_card("v1", altered)
    assert "**100.00**" in card
    assert "Seed 4711" in card
    assert "accelerate launch --cpu --num_processes 7 --mixed_precision" in card
    assert "(1234 images/s, 99 % of what a matrix product reached there)" in " ".join(card.split())
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.base_model_relation) == ("mit", "transformers", "finetune")
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results["Clean (CIFAR-10 Test)"] == 100.0
    assert len(results) == 20
    readme = (ROOT / "README.md").read_text()
    assert "**100.00**" in with_results(readme, altered)
    with pytest.raises(ValueError, match="markers"):
        with_results(readme.replace(BEGIN, ""), altered)


def test_the_card_shows_every_seed(altered):
    shutil.rmtree(altered / "v1" / "seeds", ignore_errors=True)
    assert "mean ± std" not in render_card("v1", altered)
    seed = altered / "v1" / "seeds" / "1"
    shutil.copytree(altered / "v1" / "results", seed / "results")
    table = Table.load(seed / "results")
    table.predictions[0, 5000:] = (table.labels[5000:] + 1) % 10  # half of the clean images right, where v1 has all
    table.save(seed / "results")
    record = json.loads((altered / "v1" / "training.json").read_text()) | {"seed": 1}
    record["epochs"] = record["epochs"][:3]
    (seed / "training.json").write_text(json.dumps(record))
    card = render_card("v1", altered)
    assert "| perturbation | seed 4711, 10 epochs | seed 1, 3 epochs | mean ± std |" in card
    assert "| Clean (CIFAR-10 Test) | 100.00 | 50.00 | 75.00 ± 35.36 |" in card


def test_the_committed_readme_is_what_the_result_files_give():
    readme = (ROOT / "README.md").read_text()
    assert with_results(readme, RELEASES) == readme
    assert results_table(RELEASES) in readme


def test_the_processor_feeds_the_model_as_training_does(payload, pixels, test_split):
    model = NulaForImageClassification.from_pretrained(payload).eval()
    inputs = NulaImageProcessor()(test_split.images[:16].numpy(), return_tensors="pt").pixel_values
    torch.testing.assert_close(inputs, normalize(pixels))
    with torch.no_grad():
        assert model(inputs).logits.shape == (16, 10)
