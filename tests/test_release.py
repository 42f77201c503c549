"""The payload that goes to the Hub, and what the result files say in the card and the README."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import PAGES, ROOT, call_command, run_without_nula
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from nula.data import Split
from nula.evaluation.claims import CLAIMS
from nula.evaluation.classifiers import load_classifier
from nula.evaluation.measuring import evaluate, table_rows
from nula.image_processing_nula import NulaImageProcessor, normalize
from nula.model_card import card as card_command
from nula.model_card import figures
from nula.model_card.card import pictures, release_tag, render_card, widget_images
from nula.model_card.pages import with_tables
from nula.model_card.tables import compatibility_table, definitions_table, published, results_table
from nula.modeling_nula import NulaForImageClassification
from nula.perturbations.suite import ROWS
from nula.publishing import compatibility
from nula.publishing import release as release_command
from nula.publishing.integrity import PushRefused
from nula.publishing.payload import assemble
from nula.records.release import load_releases
from nula.records.table import Table
from nula.records.weights import weights_sha256

CODE = {file.name for file in ROOT.glob("*_nula.py")}  # test_remote_code.py lists them
PAYLOAD = CODE | {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
RELEASES = ROOT / "releases"
NAMES = sorted(file.parent.name for file in RELEASES.glob("*/release.json"))
COMPATIBILITY = json.loads((RELEASES / "compatibility.json").read_text())

LOGITS = """
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
images, output, *folders = sys.argv[1:]
torch.set_num_threads(1)
logits = []
for folder in folders:
    model, processor = (kind.from_pretrained(folder, trust_remote_code=True)
                        for kind in (AutoModelForImageClassification, AutoImageProcessor))
    with torch.no_grad():
        logits.append(model.eval()(**processor(np.load(images), return_tensors="pt")).logits.numpy())
np.save(output, np.stack(logits))
"""


def remote_logits(images: np.ndarray, workplace: Path, *folders: Path) -> np.ndarray:
    """Logits of each folder's remote code in a fresh process that cannot import `nula`."""
    np.save(workplace / "images.npy", images)
    run_without_nula(LOGITS, workplace, workplace / "images.npy", workplace / "logits.npy", *folders)
    return np.load(workplace / "logits.npy")


def test_the_payload_holds_its_files_and_the_released_weights(payload, releases):
    drawn = {f"figures/{file.name}" for file in pictures(releases)}
    files = [file for file in payload.rglob("*") if file.is_file()]
    examples = set(widget_images(releases["v1"]))
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


@pytest.mark.parametrize("name", NAMES)
def test_the_payload_holds_nothing_private(name, releases, tmp_path):
    payload = assemble(releases, name, tmp_path)
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
    [remote] = remote_logits(images, tmp_path, payload)
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
    original, through_pipeline, through_parts = remote_logits(images, tmp_path, payload, piped, parts)
    assert np.array_equal(through_pipeline, original)
    np.testing.assert_allclose(through_parts, original + 1, atol=1e-5)


def test_assembling_without_weights_is_refused(altered, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors; train v1"):
        assemble(load_releases(altered), "v1", tmp_path / "build")


@pytest.mark.parametrize("version", NAMES)
def test_stored_predictions_are_those_of_the_released_weights(version, test_split):
    table = Table.load(RELEASES / version / "results")
    assert table.predictions.shape == (20, 10_000)
    assert np.array_equal(table.labels[:200], test_split.labels)
    classifier = load_classifier(str(RELEASES / version), test_split.names, torch.device("cpu"))
    again = evaluate(classifier, test_split, table_rows(seed=0), Accelerator(cpu=True), {})
    differing = (again.predictions != table.predictions[:, :200]).sum(axis=1)
    assert differing.max() <= 1  # rounding on another machine


@pytest.mark.parametrize("version", NAMES)
def test_results_were_measured_on_the_released_weights(version):
    provenance = json.loads((RELEASES / version / "results" / "provenance.json").read_text())
    assert provenance["weights_sha256"] == weights_sha256(RELEASES / version)
    assert COMPATIBILITY["weights_sha256"][version] == weights_sha256(RELEASES / version)


@pytest.mark.parametrize("row", [row.name for row in ROWS])
@pytest.mark.parametrize("training", ["", "seeds/1"])
@pytest.mark.parametrize("version", NAMES)
def test_every_row_is_above_the_published_one(version, training, row, releases):
    accuracies = Table.load(RELEASES / version / training / "results").accuracies()
    bars = published(releases[version].published)
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
    card = render_card(load_releases(altered), "v1")
    assert "**100.00**" in card
    assert "Seed 4711" in card
    assert "Chosen by a dream. The weights are those of the last step" in " ".join(card.split())
    assert "of the last step" not in render_card(load_releases(altered), "v0")  # which is a mean
    other = render_card(load_releases(altered), "v1", "owner/other")
    assert other.count("# other\n") == 1
    assert "base_model: owner/nula-cifar10-robust-v0\n" in other
    claims = card.partition("| claim | verdict |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(claims) == len(CLAIMS)
    for row in claims:
        assert row.replace("\\|", "").count("|") == 3, row  # two cells
        assert row.count("<details><summary>") == row.count("</summary>") == row.count("</details>") <= 1
    assert "--v0 MamaPearl/nula-cifar10-robust-v0 --output_dir v1\n" in card
    assert "--v0 owner/mine --output_dir v1\n" in render_card(load_releases(altered), "v1", base="owner/mine")
    assert ModelCard(card).data.datasets == ["uoft-cs/cifar10"]
    assert "accelerate launch --cpu --num_processes 7 --mixed_precision" in card
    assert (
        "9 epochs on 14 threads of Abacus (2667 images/s, 53 % of what a matrix product in float32 reached) and 1 "
        "epoch on 14 threads of Analytical Engine (4000 images/s, 80 % of what"
    ) in " ".join(card.split())
    assert f"minutes and {280_000 * 869338176 / 1e15:.2f} PFLOP, 9 epochs" in " ".join(card.split())
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.base_model_relation) == ("mit", "transformers", "finetune")
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results["Clean (CIFAR-10 Test)"] == 100.0
    assert len(results) == 20
    pages = "".join(with_tables(PAGES, load_releases(altered), COMPATIBILITY).values())
    assert "**100.00**" in pages
    assert re.search(r"^\| Clean \(CIFAR-10 Test\) \| 89\.5 \| 91\.9 \| 100\.0 \|$", pages, re.M)
    machines = "14 threads of Abacus, float32; Analytical Engine, float32"
    assert re.search(
        rf"^\| v1, seed 4711, from v0 \| {machines} \| 10 \| \d+ \| 2800 \| 56 % \| 0.24 \| 100.00 \|$", pages, re.M
    )
    end, file = "<!-- definitions: end -->", ROOT / "docs" / "definitions.md"
    for text, places in ((PAGES[file].replace(end, ""), "definitions.md"), ("", "none")):
        with pytest.raises(ValueError, match=f"markers.*{places}"):
            with_tables(PAGES | {file: text}, load_releases(altered), COMPATIBILITY)
    with pytest.raises(ValueError, match=r"markers .*; they are in .*definitions\.md, other\.md"):
        with_tables(PAGES | {Path("other.md"): end}, load_releases(altered), COMPATIBILITY)


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
    card = " ".join(render_card(load_releases(altered), "v1").split())
    assert "The worst rows: Shift Y (1-pixel) (5.00 %)" in card
    assert "The worst classes under Shift Y (1-pixel): " in card
    assert "The commonest error is frog called truck, 100.0 % of that class." in card
    assert "43.2 under Contrast (0.80) (expected calibration error)" in card
    assert "the attack free ε = 8/255 leaves 1.0 % of its answers right, and box ε = 8/255" in card
    assert "of which downsampling shows nothing, 12.0 %" in card


def test_the_card_pins_the_tag_it_is_pushed_under(altered):
    assert 'revision="main"' in render_card(load_releases(altered), "v1")
    assert 'revision="v1.2.3"' in render_card(load_releases(altered), "v1", revision="v1.2.3")


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
    assert "mean ± std" not in render_card(load_releases(altered), "v1")
    seed = altered / "v1" / "seeds" / "1"
    shutil.copytree(altered / "v1" / "results", seed / "results")
    table = Table.load(seed / "results")
    table.predictions[0, 5000:] = (table.labels[5000:] + 1) % 10  # half of the clean images right, where v1 has all
    table.save(seed / "results")
    record = json.loads((altered / "v1" / "training.json").read_text()) | {"seed": 1}
    record["epochs"] = record["epochs"][:3]
    (seed / "training.json").write_text(json.dumps(record))
    card = render_card(load_releases(altered), "v1")
    assert "| perturbation | seed 4711, 10 epochs | seed 1, 3 epochs | mean ± std |" in card
    assert "| Clean (CIFAR-10 Test) | 100.00 | 50.00 | 75.00 ± 35.36 |" in card


def test_the_committed_pages_are_what_the_result_files_give(releases):
    assert with_tables(PAGES, releases, COMPATIBILITY) == PAGES
    pages = "".join(PAGES.values())
    for table in (results_table(releases), definitions_table(), compatibility_table(COMPATIBILITY, releases)):
        assert table in pages


def test_the_readme_is_short_and_its_links_and_those_of_the_pages_lead_somewhere():
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 120
    others = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "train/ABLATIONS.md")]
    for file, text in {**PAGES, **{file: file.read_text() for file in others}}.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target:
                name, _, anchor = target.partition("#")
                linked = (file.parent / name).resolve() if name else file
                assert linked.exists(), f"{file.name} links to {target}"
                if anchor:
                    headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
                    known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                    assert anchor in known, f"{file.name} links to {target}"


@pytest.mark.parametrize("version", NAMES)
def test_the_committed_card_is_what_the_result_files_give(version, releases):
    assert (RELEASES / f"{version}.md").read_text() == render_card(releases, version, revision=release_tag())


def test_a_card_opens_each_result_file_once():
    opened = []
    watching = True

    def note(event: str, arguments: tuple) -> None:  # cannot be taken away again
        if watching and event == "open" and "/results/" in str(arguments[0]):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    releases = load_releases(RELEASES)
    for name in releases:
        render_card(releases, name)
    watching = False
    assert len(opened) >= 20
    assert sorted(opened) == sorted(set(opened))


def test_the_commands_write_what_is_committed(tmp_path, capsys):
    copy = shutil.copytree(RELEASES, tmp_path / "releases", ignore=shutil.ignore_patterns("v?.md"))
    readme, docs = shutil.copy(ROOT / "README.md", tmp_path), shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for file in (Path(readme), docs / "results.md"):
        file.write_text(re.sub(r"\| Clean .*\n", "", file.read_text()))
    call_command(card_command, "--releases", copy, "--readme", readme, "--docs", docs)
    for name in NAMES:
        assert (copy / f"{name}.md").read_text() == (RELEASES / f"{name}.md").read_text()
    for file in PAGES:
        assert (tmp_path / file.relative_to(ROOT)).read_text() == PAGES[file]
    call_command(release_command, "v0", "--releases", copy, "--build", tmp_path / "build")
    payload = tmp_path / "build" / "nula-cifar10-robust-v0"
    listed = {line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert listed == {str(file) for file in payload.rglob("*") if file.is_file()}
    assert (payload / "README.md").read_text() == (RELEASES / "v0.md").read_text()
    with pytest.raises(SystemExit, match="error: there is no release 'v9'; there are v0, v1"):
        call_command(release_command, "v9", "--releases", copy)
    with pytest.raises(SystemExit, match=f"error: {tmp_path / 'none'} holds no release"):
        call_command(card_command, "--releases", tmp_path / "none")


def test_cards_and_payloads_need_neither_matplotlib_nor_datasets():
    code = "import sys; sys.modules |= dict.fromkeys(['matplotlib', 'datasets']); import nula.publishing.push"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_third_release_is_there_by_its_files_alone(three_releases, releases):
    assert list(three_releases) == ["v0", "v1", "v2"]
    changed = with_tables(PAGES, three_releases, COMPATIBILITY)
    assert "|  | published v1 | v0 | v1 | v2 |\n" in changed[ROOT / "README.md"]
    readme = "".join(text for file, text in changed.items() if file.name != "README.md")
    columns = "v0 | published v0 | v1 | published v1 | v2 | v1 − v0 | v2 − v1"
    assert f"| perturbation | {columns} |\n" in readme
    v1, v2 = (three_releases[name].results.table().row("Clean (CIFAR-10 Test)") for name in ("v1", "v2"))
    results = changed[ROOT / "docs" / "results.md"].splitlines()
    [clean] = [line for line in results if line.startswith("| Clean")]
    cells = [cell.partition("<")[0].strip() for cell in clean.strip("|").split("|")]
    change = f"{v2.accuracy - v1.accuracy:+.2f}".replace("-", "−")
    assert cells[5:] == [f"**{v2.accuracy:.2f}**", "−0.39", change]  # the last release is in bold
    assert "| v2, seed 5, from v1 | 2 threads of AMD EPYC, bfloat16 | 10 | 17 | 501 | 48 % | 0.43 |" in readme
    assert "| transformers | huggingface_hub | torch | v0 | v1 | v2 |\n|---|---|---|--:|--:|--:|\n" in readme
    assert "| 4.57.6 | 0.36.2 | 2.13.0+cpu | 1e-06 | 1e-06 | not measured |" in readme

    cards = {name: render_card(three_releases, name) for name in three_releases}
    claims = render_card(releases, "v1").partition("## Claims")[2].partition("## ")[0].strip()
    assert claims
    for card in cards.values():
        assert card.partition("## Claims")[2].partition("## ")[0].strip() == claims
        assert "| perturbation | ECE v0 | ECE v1 | ECE v2 |" in card
        assert "| corruption | v0 | v1 |" in card
        assert f"| perturbation | {columns} |\n" in card
    assert "# nula-tiny\n" in cards["v2"]
    assert "base_model: MamaPearl/nula-cifar10-robust-v1\n" in render_card(three_releases, "v2", "somebody/else")
    assert "base_model: owner/nula-cifar10-robust-v1\n" in render_card(three_releases, "v2", "owner/else")
    for sentence in ("v2 is v1 made tiny.", "1.23 M parameters", "Seed 5.", "--output_dir v2\n"):
        assert sentence in cards["v2"]
        assert sentence not in cards["v1"]


def test_other_versions_of_transformers_are_tried_with_every_release(three_releases, tmp_path, monkeypatch, capsys):
    """All but making the environments and loading the payloads in them."""
    root = shutil.copytree(three_releases["v2"].folder.parent, tmp_path / "releases")
    monkeypatch.setattr(compatibility, "environment", lambda folder, requirement: sys.executable)
    checked = []

    def check(payload: Path, golden: Path, python: str) -> float:
        checked.append((payload.name, golden, python))
        return 2e-6 if payload.name == "nula-tiny" else 1e-6

    monkeypatch.setattr(compatibility, "check_payload", check)
    monkeypatch.setattr(sys, "argv", ["compatibility", "--releases", str(root), "--build", str(tmp_path / "build")])
    compatibility.main()
    names = ["nula-cifar10-robust-v0", "nula-cifar10-robust-v1", "nula-tiny"] * len(compatibility.REQUIREMENTS)
    goldens = [root / name / "results" / "golden.npz" for name in three_releases] * len(compatibility.REQUIREMENTS)
    assert checked == [(name, golden, sys.executable) for name, golden in zip(names, goldens)]
    record = json.loads((root / "compatibility.json").read_text())
    assert record["weights_sha256"] == {name: release.weights_sha256 for name, release in three_releases.items()}
    *_, last = compatibility_table(record, three_releases).splitlines()
    assert last.endswith(f"| {torch.__version__} | 1e-06 | 1e-06 | 2e-06 |")
    monkeypatch.setattr(compatibility, "check_payload", lambda *arguments: refuse())
    with pytest.raises(SystemExit, match=r"error: transformers==4\.57\.6: it does not load"):
        compatibility.main()


def refuse() -> None:
    raise PushRefused("it does not load")


def test_the_pictures_of_three_releases_go_to_their_cards(three_releases, test_split, tmp_path, monkeypatch):
    root = shutil.copytree(three_releases["v2"].folder.parent, tmp_path / "releases")
    table = three_releases["v2"].results.table()
    labels = torch.from_numpy(table.labels.astype(np.int64))
    data = Split(test_split.images.repeat(50, 1, 1, 1), labels, table.classes, table.origin[0])
    monkeypatch.setattr("nula.data.DataSource.test", lambda source: data)
    call_command(figures, "--releases", root)
    releases = load_releases(root)
    assert [file.stem for file in pictures(releases)] == [picture.name for picture in figures.PICTURES]
    captions = pictures(releases).values()
    assert "Test images to which v0 and v1 give different answers" in captions
    payload = assemble(releases, "v2", tmp_path / "build")
    assert payload == tmp_path / "build" / "nula-tiny"
    assert len([*(payload / "figures").iterdir()]) == len(figures.PICTURES)
    assert NulaForImageClassification.from_pretrained(payload).config.hidden_sizes == [8, 12, 16]
    record = releases["v2"].training | {"weights_sha256": "0" * 64}
    (root / "v2" / "training.json").write_text(json.dumps(record))
    assert pictures(load_releases(root)) == {}  # they are of other weights


@pytest.mark.parametrize("name", ["v0", "v1", "v2"])
def test_one_release_stands_alone(name, three_releases, test_split):
    alone = {name: three_releases[name]}
    compared = [f"published {name}"] if alone[name].published else []
    assert results_table(alone).startswith(f"| perturbation | {' | '.join([name, *compared])} |\n")
    assert "**" not in results_table(alone)
    card = render_card(alone, name)
    assert "## Claims" not in card
    assert "base_model" not in card  # its parent is not among the releases
    assert ("are the figures of the NULA" in card) == bool(compared)
    assert "base_model: some/body\n" in render_card(alone, name, base="some/body") or name == "v0"
    missing = [picture.name for picture in figures.PICTURES if picture.draw(alone, test_split) is None]
    studies = ["sensitivity", "curvature", "certified"] if name == "v2" else []
    assert missing == ["running_gap", *studies, "path", "flipped"]


def test_what_is_not_cifar10_is_not_called_so(three_releases, tmp_path):
    root = shutil.copytree(three_releases["v2"].folder.parent, tmp_path / "releases")
    classes = [f"kind {number}" for number in range(12)]
    dataset = {"name": "my_images", "split": "test", "images": 10_000, "sha256": "1" * 64, "classes": classes}
    for name in ("v0", "v1"):
        for study in ("corruptions", "null_space", "noise", "basin"):
            shutil.rmtree(root / name / "results" / study, ignore_errors=True)
        for training in (root / name, root / name / "seeds" / "1"):
            table = Table.load(training / "results")
            replace(table, provenance=table.provenance | {"dataset": dataset}).save(training / "results")
            record = json.loads((training / "training.json").read_text())
            record |= {"dataset": dataset | {"split": "train"}}
            (training / "training.json").write_text(json.dumps(record))
    shutil.rmtree(root / "v2")
    releases = load_releases(root)
    assert results_table(releases).startswith("| perturbation | v0 | v1 | v1 − v0 |\n")
    card = render_card(releases, "v1", "owner/mine")
    assert not re.findall("CIFAR|cifar-10|airplane|published", card.replace("The published table names its rows", ""))
    data = ModelCard(card).data
    assert (data.datasets, data.tags) == (None, ["robustness", "anti-aliasing"])  # a folder is on no Hub
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {("my_images", "my_images")}
    assert data.eval_results[0].metric_name == "Clean"
    assert [example["src"] for example in data.to_dict()["widget"]] == [f"examples/kind_{k}.png" for k in (3, 8, 0)]
    assert "It knows 12 classes and 32×32 pixels" in card
    table = Table.load(root / "v1" / "results")
    signs = dataset | {"classes": list("+-*/<>=!?#@&")}
    replace(table, provenance=table.provenance | {"dataset": signs}).save(root / "v1" / "results")
    assert list(widget_images(load_releases(root)["v1"])) == [f"examples/{name}.png" for name in ("_", "__8", "__0")]
    assert "The worst classes under Clean: kind " in card
    assert "--dataset cifar10" in card  # its command as it was given
    record = json.loads((root / "v1" / "training.json").read_text())
    (root / "v1" / "training.json").write_text(json.dumps(record | {"dataset": dataset | {"name": "owner/my_images"}}))
    assert ModelCard(render_card(load_releases(root), "v1", "owner/mine")).data.datasets == ["owner/my_images"]


def test_the_processor_feeds_the_model_as_training_does(payload, pixels, test_split):
    model = NulaForImageClassification.from_pretrained(payload).eval()
    inputs = NulaImageProcessor()(test_split.images[:16].numpy(), return_tensors="pt").pixel_values
    torch.testing.assert_close(inputs, normalize(pixels))
    with torch.no_grad():
        assert model(inputs).logits.shape == (16, 10)
