"""Runs that are given minutes, the way to train v2 on a GPU, and whitened stems."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, SAMPLE
from test_training import train_here
from torch.utils.flop_counter import FlopCounterMode

from nula.configuration_nula import NulaConfig
from nula.data import Split, to_pixels
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification
from nula.records.weights import weights_sha256
from nula.train.budget import TimeBudget, epochs_within
from nula.train.net import parameter_groups, whiten_stem
from nula.train.recipe import V0, V2
from nula.train.run import Run, RunSettings, divergence
from nula.train.train_v2 import ARCHITECTURE

RECIPE = replace(V2, batch_size=64, cosine_epochs=1)
NET = {"stem_channels": 6, "hidden_sizes": (8, 12), "depths": (1, 0)}


def net() -> NulaForImageClassification:
    torch.manual_seed(0)
    return NulaForImageClassification(NulaConfig(**NET, contrast_epsilon=0.05))


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr("nula.train.run.peak_flops", lambda device, dtype: 1e12)


def budget_for(data: Split, folder: Path, epochs: int) -> TimeBudget:
    """Minutes into which some `epochs` of RECIPE fit, by the speed of a run here."""
    begin = time.monotonic()
    train_here(net(), RECIPE, data, folder)
    return TimeBudget((time.monotonic() - begin) / 2 * epochs / 60, time.monotonic())


@pytest.mark.usefixtures("_quick")
def test_a_run_of_some_minutes_is_that_of_the_epochs_that_fit(train_split, tmp_path, capsys):
    trained, log = train_here(
        net(), RECIPE, train_split, tmp_path / "a", budget=budget_for(train_split, tmp_path / "speed", 6)
    )
    epochs = len(log["epochs"])
    assert 2 <= epochs <= 20
    assert log["cosine_epochs"] == epochs - 1
    told = re.search(
        r"(\d+) epochs fit into \S+ minutes, .*: as with --recipe cosine_epochs=(\d+)\.", capsys.readouterr().out
    )
    assert (int(told[1]), int(told[2])) == (epochs, epochs - 1)
    same, other = train_here(net(), replace(RECIPE, cosine_epochs=epochs - 1), train_split, tmp_path / "b")
    assert [epoch["learning_rate"] for epoch in log["epochs"]] == [epoch["learning_rate"] for epoch in other["epochs"]]
    assert [epoch["loss"] for epoch in log["epochs"]] == [epoch["loss"] for epoch in other["epochs"]]
    for name, tensor in same.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name


@pytest.mark.usefixtures("_quick")
def test_a_resumed_run_keeps_its_epochs(train_split, tmp_path):
    budget = budget_for(train_split, tmp_path / "speed", 6)
    train_here(net(), RECIPE, train_split, tmp_path / "a", budget=budget, max_steps=7)
    saved = json.loads((tmp_path / "a" / "checkpoint" / "identity.json").read_text())
    assert saved["cosine_epochs"] == f"as many as fit into {budget.minutes:g} minutes"
    late = replace(budget, started=budget.started - 1e6)  # no time is left, and none is asked for
    trained, log = train_here(net(), RECIPE, train_split, tmp_path / "a", budget=late, resume=True)
    same, _ = train_here(net(), replace(RECIPE, cosine_epochs=log["cosine_epochs"]), train_split, tmp_path / "b")
    for name, tensor in same.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name
    other = replace(budget, minutes=2 * budget.minutes)
    with pytest.raises(ValueError, match=r"cosine_epochs is 'as many as fit into .*, was 'as many as fit into"):
        train_here(net(), RECIPE, train_split, tmp_path / "a", budget=other, resume=True)


@pytest.mark.usefixtures("_quick")
def test_minutes_into_which_no_epoch_fits_are_refused_with_the_figure(train_split, tmp_path):
    message = r"--minutes 0.0001 are too few: an epoch takes \S+ s on this machine, .* at least 2, .* needs \S+ minutes"
    with pytest.raises(ValueError, match=message):
        train_here(net(), RECIPE, train_split, tmp_path, budget=TimeBudget(0.0001))
    assert not (tmp_path / "checkpoint").exists()
    assert not (tmp_path / "checkpoint.timed").exists()


def test_two_processes_agree_about_the_epochs_that_fit(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "train/train_v2.py"]
    command += ["--dataset", str(SAMPLE), "--output_dir", str(tmp_path / "run"), "--minutes", "0.6"]
    command += ["--recipe", "batch_size=64", "--config", "hidden_sizes=[8,12]", "depths=[0,0]", "stem_channels=6"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    record = json.loads((tmp_path / "run" / "training.json").read_text())  # check_agreement compared the weights
    assert record["hardware"]["processes"] == 2
    assert len(record["epochs"]) == record["recipe"]["warmup_epochs"] + record["recipe"]["cosine_epochs"]


def test_epochs_are_as_many_as_fit():
    budget = TimeBudget(10, 0.0)
    assert epochs_within(budget, left=100, epoch=9, final=10, least=2, done=0) == 10
    assert epochs_within(budget, left=100, epoch=9, final=11, least=2, done=0) == 9
    assert epochs_within(budget, left=100, epoch=9, final=11, least=2, done=0.5) == 10
    assert epochs_within(budget, left=29, epoch=9, final=11, least=2, done=0) == 2
    with pytest.raises(ValueError, match=r"needs 10\.\d\d minutes"):  # 582 s are gone, 27 s more are needed
        epochs_within(budget, left=18, epoch=8, final=11, least=2, done=0)


def test_a_step_of_some_views_is_of_all_of_them(train_split, tmp_path):
    recipe = replace(V0, batch_size=16, views=3, consistency_weight=2.0)
    run = Run(net(), train_split, Accelerator(cpu=True), RunSettings(recipe=recipe, output_dir=tmp_path))
    batch = run._batch()
    assert batch.pixels.shape == (48, 3, 32, 32)
    labels = batch.labels.view(3, 16)
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(batch.pixels[:16], batch.pixels[16:32])
    assert sum(run.step().operators) == 48


def test_the_divergence_is_that_of_its_definition():
    logits = torch.randn(3 * 5, 4, generator=torch.Generator().manual_seed(0))
    views = logits.softmax(dim=1).view(3, 5, 4)
    entropy = lambda p: -(p * p.log()).sum(dim=-1)  # noqa: E731 (a formula)
    expected = (entropy(views.mean(dim=0)) - entropy(views).mean(dim=0)).mean()
    torch.testing.assert_close(divergence(logits, 3), expected)
    same = logits[:5].repeat(3, 1)
    assert divergence(same, 3).abs() < 1e-6


def test_a_whitened_stem_answers_to_images_with_uncorrelated_responses(train_split):
    model = net()
    whiten_stem(model, train_split.images, 1e-6)
    stem = model.nula.stem
    assert not stem.convolution.weight.requires_grad
    inside = stem.contrast(normalize(to_pixels(train_split.images)))
    responses = torch.nn.functional.conv2d(inside, stem.convolution.weight)  # without padding
    flat = responses.transpose(0, 1).flatten(1)
    covariance = flat @ flat.T / flat.shape[1]
    torch.testing.assert_close(covariance[:3, :3], torch.eye(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(covariance[:3, 3:], -torch.eye(3), rtol=0, atol=1e-2)
    assert all(parameter is not stem.convolution.weight for parameter in parameter_groups(model).weights)


@pytest.mark.parametrize("channels", [5, 56])
def test_stems_that_cannot_be_whitened_are_refused(train_split, channels):
    model = NulaForImageClassification(NulaConfig(**(NET | {"stem_channels": channels})))
    with pytest.raises(ValueError, match=f"stem_channels is {channels}, must be even and at most 54 for whitening"):
        whiten_stem(model, train_split.images, 1e-3)


def test_a_whitened_run_learns_and_keeps_its_filters(train_split, tmp_path):
    model = net()
    trained, _ = train_here(model, RECIPE, train_split, tmp_path)
    expected = net()
    whiten_stem(expected, train_split.images, RECIPE.whitening_epsilon)
    assert torch.equal(trained.nula.stem.convolution.weight, expected.nula.stem.convolution.weight)
    assert trained.nula.stem.convolution.bias.abs().max() > 0


def test_the_run_on_a_gpu_is_ready(tmp_path):
    """The script itself, with a tiny net, 20 steps and one minute, on a CPU and not compiled."""
    output, brought = tmp_path / "run", tmp_path / "out"
    brought.mkdir()
    small = ["--recipe", "batch_size=64", "views=2", "consistency_weight=4"]
    small += ["--config", "hidden_sizes=[8,12,16]", "depths=[1,1,1]"]
    environment = os.environ | {
        "DYNAMO_BACKEND": "no",
        "OUT": str(brought),
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
    }
    begin = time.monotonic()
    finished = subprocess.run(
        ["bash", ROOT / "train/train_v2_gpu.sh", SAMPLE, output, "1", *small, "--max_steps", "20"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert time.monotonic() - begin < 60 + 60  # the tests that are skipped, and the interpreter's start
    record = json.loads((brought / "training.json").read_text())
    assert record["minutes"] == 1
    assert record["max_steps"] == 20
    assert record["recipe"]["views"] == 2
    parts = sorted(brought.glob("model.safetensors.*"))
    assert b"".join(part.read_bytes() for part in parts) == (output / "model.safetensors").read_bytes()
    assert record["weights_sha256"] == weights_sha256(output)
    assert len(record["epochs"]) == min(4, 1 + record["recipe"]["cosine_epochs"])  # five steps each
    assert torch.cuda.is_available() or "skipped" in finished.stdout
    assert "--minutes" not in record["command"]
    assert f"--recipe cosine_epochs={record['recipe']['cosine_epochs']} batch_size=64 views=2" in record["command"]
    assert "with another cosine_epochs" in json.loads((brought / "release.json").read_text())["summary"]


def test_the_net_for_a_gpu_has_at_most_six_million_parameters():
    script = (ROOT / "train/train_v2_gpu.sh").read_text()
    fields = {name: json.loads(value) for name, value in re.findall(r"'(\w+)=(\[[\d,]+\])'", script)}
    assert fields.keys() == {"hidden_sizes", "depths"}
    costs = []
    for changes in ({}, fields):
        model = NulaForImageClassification(NulaConfig(**(ARCHITECTURE | changes))).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        costs.append((model.num_parameters(), counter.get_total_flops() / 2))  # multiply-adds
    (parameters, on_cpu), (larger, on_gpu) = costs
    assert parameters < larger <= 6e6
    assert on_cpu <= 300e6
    assert on_cpu < on_gpu <= 1.5e9
