"""The payload that goes to the Hub, and what the result files say in the card and the README."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, run_without_nula
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from nula.evaluation.claims import CLAIMS
from nula.evaluation.classifiers import load_classifier
from nula.evaluation.measuring import evaluate, table_rows
from nula.image_processing_nula import NulaImageProcessor, normalize
from nula.model_card.card import pictures, release_tag, render_card, widget_images, with_tables
from nula.model_card.tables import VERSIONS, compatibility_table, definitions_table, published, results_table
from nula.modeling_nula import NulaForImageClassification
from nula.perturbations.suite import ROWS
from nula.publishing.payload import assemble
from nula.records.table import Table
from nula.records.weights import weights_sha256

CODE = {
    f"{name}_nula.py" for name in ("configuration", "modeling", "image_processing", "pipeline", "reading", "smoothing")
}
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
    examples = set(widget_images("v1", RELEASES))
    assert {file.relative_to(payload).as_posix() for file in files} == PAYLOAD | drawn | examples
    assert drawn
    assert all(f"]({name})" in (payload / "README.md").read_text() for name in drawn)
    for name in CODE:
        assert (payload / name).read_text() == (ROOT / name).read_text()
    config = json.loads((payload / "config.json").read_text())
    assert config["architectures"] == ["NulaForImageClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_nula.NulaConfig",
        "AutoModel": "modeling_nula.NulaModel",
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


PRIVATE = {
    "an absolute path": rb"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|opt|var|usr)/\w",
    "the checkout": re.escape(str(ROOT).encode()),
    "the home directory": re.escape(str(Path.home()).encode()),
    "a token": rb"\bhf_[A-Za-z0-9]{16,}",
    "a pickle": rb"^PK\x03\x04|^\x80[\x02-\x05][c}\]K(\x8c\x95]",
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_payload_holds_nothing_private(version, tmp_path):
    payload = assemble(version, RELEASES, tmp_path)
    weights = NulaForImageClassification.from_pretrained(payload).state_dict()
    for file in payload.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            if file.suffix == ".safetensors":  # the names in front of random-looking numbers
                length = int.from_bytes(content[:8], "little")
                content = content[8 : 8 + length]
                assert set(json.loads(content)) - {"__metadata__"} == set(weights)  # no state of an optimiser
            elif file.suffix == ".png":  # what is written beside the compressed pixels
                content = json.dumps(Image.open(file).info, default=str).encode()
            found = [what for what, pattern in PRIVATE.items() if re.search(pattern, content)]
            assert not found, f"{file.name} holds {found}"


def test_what_is_private_is_found(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.pt")
    samples = {
        "an absolute path": b"trained in /home/somebody/nula",
        "the checkout": str(ROOT).encode(),
        "the home directory": str(Path.home()).encode(),
        "a token": b'"token": "hf_AbCdEfGhIjKlMnOpQrStUv"',
        "a pickle": pickle.dumps({"a": 1}),
    }
    assert all(re.search(PRIVATE[what], sample) for what, sample in samples.items())
    assert re.search(PRIVATE["a pickle"], (tmp_path / "zip.pt").read_bytes())


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
    compatibility = json.loads((RELEASES / "compatibility.json").read_text())
    assert compatibility["weights_sha256"][version] == weights_sha256(RELEASES / version)


@pytest.mark.parametrize("row", [row.name for row in ROWS])
@pytest.mark.parametrize("training", ["", "seeds/1"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_is_above_the_published_one(version, training, row):
    accuracies, bars = Table.load(RELEASES / version / training / "results").accuracies(), published(version)
    assert set(bars) == set(accuracies)
    assert accuracies[row] > bars[row]


@pytest.mark.parametrize("training", ["", "seeds/1"])
def test_fine_tuning_buys_noise_and_costs_little(training):
    v0, v1 = (Table.load(RELEASES / version / training / "results").accuracies() for version in ("v0", "v1"))
    changes = {name: v1[name] - v0[name] for name in v0}
    assert changes["Gaussian Noise σ = 0.05"] >= 1.0
    assert min(changes.values()) > -1.0


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """The releases, but v1 is right on every clean image and was trained with another seed."""
    for version in ("v0", "v1"):
        shutil.copytree(RELEASES / version, tmp_path / version, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(RELEASES / "compatibility.json", tmp_path)
    (tmp_path / "v1" / "notes.md").write_text("Chosen by a dream.\n")
    table = Table.load(RELEASES / "v1" / "results")
    table.predictions[0] = table.labels
    table.save(tmp_path / "v1" / "results")
    record = json.loads((RELEASES / "v1" / "training.json").read_text()) | {"seed": 4711}
    record["hardware"]["processes"] = 7
    for index, epoch in enumerate(record["epochs"]):
        speed = {"seconds": 10.0, "peak_flops": 5e9 * record["flops_per_image"] / 7e6, "machine": "Abacus"}
        epoch |= speed | {"operators": {"none": 10_000 if index < 4 else 40_000}, "dtype": "float32"}
    record["epochs"][9]["machine"] = "Analytical Engine"
    (tmp_path / "v1" / "training.json").write_text(json.dumps(record))
    return tmp_path


def test_card_and_readme_follow_the_result_files(altered):
    card = render_card("v1", altered)
    assert "**100.00**" in card
    assert "Seed 4711" in card
    assert "Chosen by a dream. The weights are those of the last step" in " ".join(card.split())
    assert "of the last step" not in render_card("v0", altered)  # which is a mean
    other = render_card("v1", altered, "owner/other")
    assert other.count("# other\n") == 1
    assert "base_model: owner/nula-cifar10-robust-v0\n" in other
    claims = card.partition("| claim | measured | verdict |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(claims) == len(CLAIMS)
    for row in claims:
        assert row.replace("\\|", "").count("|") == 4, row  # three cells
    assert "--v0 MamaPearl/nula-cifar10-robust-v0 --output_dir v1\n" in card
    assert "--v0 owner/mine --output_dir v1\n" in render_card("v1", altered, base="owner/mine")
    assert ModelCard(card).data.datasets == ["uoft-cs/cifar10"]
    assert "accelerate launch --cpu --num_processes 7 --mixed_precision" in card
    assert (
        "9 epochs on 14 threads of Abacus (2667 images/s, 53 % of what a matrix product in float32 reached) and 1 "
        "epoch on 14 threads of Analytical Engine (4000 images/s, 80 % of what"
    ) in " ".join(card.split())
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.base_model_relation) == ("mit", "transformers", "finetune")
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results["Clean (CIFAR-10 Test)"] == 100.0
    assert len(results) == 20
    readme = (ROOT / "README.md").read_text()
    assert "**100.00**" in with_tables(readme, altered)
    with pytest.raises(ValueError, match="markers"):
        with_tables(readme.replace("<!-- definitions: end -->", ""), altered)


def test_the_card_says_what_the_release_is_bad_at(altered):
    results = altered / "v1" / "results"
    table = Table.load(results)
    of_frog, worst = table.labels == 6, table.rows.index("Shift Y (1-pixel)")
    table.predictions[worst] = table.labels
    table.predictions[worst, of_frog] = 9
    table.predictions[worst, np.flatnonzero(~of_frog)[:8500]] = 6
    table.save(results)
    scores = json.loads((results / "calibration.json").read_text())
    scores["rows"]["Contrast (0.80)"]["expected_calibration_error"] = 0.4321
    (results / "calibration.json").write_text(json.dumps(scores))
    attacked = Table.load(results / "null_space")
    attacked.predictions[:] = attacked.labels
    for row, wrong in (("free", 990), ("box", 880), ("decimation", 770)):
        attacked.predictions[attacked.rows.index(f"{row} ε = 8/255"), :wrong] = (attacked.labels[:wrong] + 1) % 10
    attacked.save(results / "null_space")
    card = " ".join(render_card("v1", altered).split())
    assert "The worst rows: Shift Y (1-pixel) (5.00 %)" in card
    assert "The worst classes under Shift Y (1-pixel): " in card
    assert "The commonest error is frog called truck, 100.0 % of that class." in card
    assert "43.2 under Contrast (0.80) (expected calibration error)" in card
    assert "the attack free ε = 8/255 leaves 1.0 % of its answers right, and box ε = 8/255" in card
    assert "of which downsampling shows nothing, 12.0 %" in card


def test_the_card_pins_the_tag_it_is_pushed_under(altered):
    assert 'revision="main"' in render_card("v1", altered)
    assert 'revision="v1.2.3"' in render_card("v1", altered, revision="v1.2.3")


def test_the_widget_shows_what_the_pipeline_answers(payload, tmp_path):
    examples = ModelCard.load(payload / "README.md").data.to_dict()["widget"]
    assert len({example["output"][0]["label"] for example in examples}) == len(examples) == 3
    code = """
import json
from transformers import pipeline
classifier = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(classifier(sys.argv[2:], top_k=3)))
"""
    images = [payload / example["src"] for example in examples]
    answers = json.loads(run_without_nula(code, tmp_path, payload, *images))
    for example, answer in zip(examples, answers, strict=True):
        assert [score["label"] for score in answer] == [score["label"] for score in example["output"]]
        assert [s["score"] for s in answer] == pytest.approx([s["score"] for s in example["output"]], abs=1e-3)


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
    assert with_tables(readme, RELEASES) == readme
    assert results_table(RELEASES) in readme
    assert definitions_table() in readme
    assert compatibility_table(RELEASES) in readme


@pytest.mark.parametrize("version", VERSIONS)
def test_the_committed_card_is_what_the_result_files_give(version):
    assert (RELEASES / f"{version}.md").read_text() == render_card(version, RELEASES, revision=release_tag())


def test_the_processor_feeds_the_model_as_training_does(payload, pixels, test_split):
    model = NulaForImageClassification.from_pretrained(payload).eval()
    inputs = NulaImageProcessor()(test_split.images[:16].numpy(), return_tensors="pt").pixel_values
    torch.testing.assert_close(inputs, normalize(pixels))
    with torch.no_grad():
        assert model(inputs).logits.shape == (16, 10)
