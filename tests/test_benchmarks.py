"""The benchmarks, on a model that is small enough for a test."""

import json
import sys

import pytest
from conftest import SAMPLE

from nula.benchmarks import fine_tuning, forms, memory, pipeline
from nula.benchmarks.tables import (
    FOLDER,
    faster_than_stock,
    fine_tuning_table,
    forms_table,
    load_records,
    memory_table,
    page,
    pipeline_table,
    start_up_table,
)
from nula.benchmarks.timing import interleaved, ratio

MACHINES = ("AMD EPYC", "Intel(R) Xeon(R) Processor")


def at_batch_64(machine: str) -> dict[str, dict[str, list[float]]]:
    """What the committed record of a machine says of batches of 64: kind of input to candidate to seconds."""
    [record] = (record for record in load_records()[0] if record["machine"]["processor"] == machine)
    return record["seconds"]["64"]


def test_the_committed_page_is_what_the_records_give(releases):
    pipelines, *others, (_, of_memory) = load_records()
    assert (FOLDER / "README.md").read_text() == page(*load_records())
    others.append(of_memory)
    released = list(releases.values())[-1].weights_sha256
    assert {record["weights_sha256"] for record in (pipelines[0], *others)} == {released}


@pytest.mark.parametrize(("kind", "most"), [("tensors", 1.10), ("arrays", 1.10), ("PIL images", 1.35)])
@pytest.mark.parametrize("machine", MACHINES)
def test_the_pipeline_costs_little_beside_the_model(kind, most, machine):
    assert ratio(at_batch_64(machine)[kind], pipeline.OURS, pipeline.BARE) <= most


# There the layout that the stock pipeline leaves the weights in costs less.
MISSED = pytest.mark.xfail(reason="below 1.5 times as fast as the stock pipeline on an AMD EPYC", strict=True)


@pytest.mark.parametrize("kind", ["tensors", "arrays", "PIL images"])
@pytest.mark.parametrize("machine", [pytest.param(MACHINES[0], marks=MISSED), MACHINES[1]])
def test_the_pipeline_is_faster_than_the_stock_one(kind, machine):
    assert faster_than_stock(at_batch_64(machine)[kind]) >= 1.5


@pytest.mark.parametrize("kind", memory.KINDS)
def test_large_images_take_the_memory_of_few(kind):
    """Eight take less than before, and eighty no more than eight, but for what glibc keeps."""
    before, now = (record["taken"][kind] for record in load_records()[-1])
    taken = [now[count]["bytes"] - now["0"]["bytes"] for count in ("8", "80")]
    assert taken[0] < (before["8"]["bytes"] - before["0"]["bytes"]) / 4
    assert taken[1] < 1.2 * taken[0]
    for count in ("8", "80"):
        assert now[count]["labels"] == before[count]["labels"]
        assert now[count]["scores"] == before[count]["scores"]  # to the bit


def test_memory_is_measured_in_a_process_of_its_own(payload, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "KINDS", {"RGB, JPEG": ("RGB", "jpg")})
    monkeypatch.setattr(memory, "FILES", 2)
    monkeypatch.setattr(memory, "COUNTS", (0, 2))
    output = tmp_path / "memory.json"
    words = ["nula.benchmarks.memory", "--model", str(payload), "--side", "300", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    memory.main()
    record = json.loads(output.read_text())
    taken = record["taken"]["RGB, JPEG"]
    assert len(taken["2"]["labels"]) == 2
    assert taken["2"]["bytes"] >= taken["0"]["bytes"] > 50 * 2**20
    figures = {"0": {"bytes": 1e9}, "2": {"bytes": 1.25e9, "seconds": 2.0}}
    made_up = {"taken": {"RGB, JPEG": figures}}
    assert "| RGB, JPEG | 2 | 250 | 250 | 2.0 | 2.0 |" in memory_table(made_up, made_up)


def test_candidates_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleaved(calls, rounds=30)
    assert order[:3] == list("abc")  # not timed
    rounds = ["".join(order[first : first + 3]) for first in range(3, 93, 3)]
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert {name: len(times) for name, times in seconds.items()} == {"a": 30, "b": 30, "c": 30}
    assert ratio({"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b") == 2.0


@pytest.fixture
def records(tiny_folder, tmp_path, monkeypatch) -> tuple[dict, dict, dict]:
    monkeypatch.setattr(pipeline, "BATCH_SIZES", (2,))
    monkeypatch.setattr(pipeline, "IMAGES", 4)
    monkeypatch.setattr(pipeline, "START_UP", {"nothing": "pass"})
    monkeypatch.setattr(forms, "BATCH_SIZES", (2,))
    monkeypatch.setattr(forms, "IMAGES", 4)
    monkeypatch.setattr(fine_tuning, "IMAGES", 8)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    rounds = ("--rounds", "2")
    programs = {"pipeline": (pipeline, rounds), "forms": (forms, rounds), "fine_tuning": (fine_tuning, ())}
    for name, (module, options) in programs.items():
        arguments = ["--model", str(tiny_folder), "--dataset", str(SAMPLE), "--output", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["nula.benchmarks", *arguments, *options])
        module.main()
    of_pipeline, of_forms, of_fine_tuning = (json.loads((tmp_path / name).read_text()) for name in programs)
    return of_pipeline, of_forms, of_fine_tuning


def test_the_page_follows_the_records(records):
    of_pipeline, of_forms, of_fine_tuning = records
    assert set(of_pipeline["seconds"]["2"]) == {"tensors", "arrays", "PIL images", "JPEG files", "data set"}
    exact = {of_forms["accuracy"][name] for name in (forms.MODEL, "torch.export", "ONNX")}
    assert max(exact) - min(exact) <= 0.5  # of 200 images
    for seconds in (*of_pipeline["seconds"]["2"].values(), of_forms["seconds"]["2"]):
        for name, times in seconds.items():
            assert min(times) > 0
            seconds[name] = [2.0, 2.0]
        seconds["stock pipeline, another"] = [3.0, 3.0]
    of_pipeline["seconds"]["2"]["arrays"][pipeline.OURS] = [2.5, 2.5]
    stock = "1.00 | " * len(pipeline.STOCK)
    assert f"| 2 | arrays | 2 | 1.25 | 1.00 | {stock}1.50 | 0.80 |" in pipeline_table(of_pipeline)
    assert f"| 2 | tensors | 2 | 1.00 | 1.00 | {stock}1.50 | 1.00 |" in pipeline_table(of_pipeline)
    of_pipeline["start_up_seconds"]["nothing"] = [1.0, 3.0, 2.0]
    assert "| nothing | 2.0 |" in start_up_table(of_pipeline)
    of_forms["bytes"][forms.MODEL], of_forms["accuracy"][forms.MODEL] = 12_340_000, 56.78
    assert f"| {forms.MODEL} | 12.3 | 1.00 | 56.78 |" in forms_table(of_forms)
    assert (of_fine_tuning["images"], of_fine_tuning["test_images"]) == (8, 37)
    for run in of_fine_tuning["runs"]:
        run["accuracy"] = 90 + (run["weights"] == "rescaled") + 2 * (run["head"] == "new") + run["learning_rate"]
    assert "| `adamw_torch` | 0.001 | 90.00 | 92.00 | 91.00 | 93.00 |" in fine_tuning_table(of_fine_tuning)
    assert "| `sgd` | 0.01 | 90.01 | 92.01 | 91.01 | 93.01 |" in fine_tuning_table(of_fine_tuning)
    text = page([of_pipeline], of_forms, of_fine_tuning, load_records()[-1])
    assert pipeline_table(of_pipeline) in text
    assert forms_table(of_forms) in text
    assert fine_tuning_table(of_fine_tuning) in text
