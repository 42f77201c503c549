import ctypes
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, SAMPLE, launch, unaugmented
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.swa_utils import AveragedModel

from nula.configuration_nula import NulaConfig
from nula.data import DataSource, Split, has_shares, load_split, stratified, to_pixels
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification
from nula.perturbations.sampling import checkerboard, decimate
from nula.perturbations.suite import ROWS
from nula.records.provenance import command_again, public_argument
from nula.records.table import Table, row_title
from nula.records.weights import load_model, weights_sha256
from nula.runtime import launcher
from nula.train import train_v0
from nula.train.augmentation import crop_and_flip, perturb
from nula.train.checkpoints import only_writer, save_checkpoint
from nula.train.checks import check_agreement
from nula.train.draws import batch_indices, run_seed
from nula.train.launch import _writing, build_parser
from nula.train.loop import train
from nula.train.optimizers import Muon, build_optimizers, build_scheduler, orthogonalize
from nula.train.recipe import OPERATORS, V0, V1, Recipe
from nula.train.run import RunSettings
from nula.train.validation import hold_out


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known_speed(device: torch.device, dtype: torch.dtype) -> float:
    """In place of measuring the machine after every epoch, which takes longer than the epoch."""
    return 1e11


@pytest.fixture(autouse=True)
def _speed_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nula.train.run.peak_flops", known_speed)


def frozen_recipe(release: str) -> Recipe:
    """The recipe that a release was trained by, as its release.json has it."""
    settings = json.loads((ROOT / "releases" / release / "release.json").read_text())["recipe"]
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def train_here(
    model: NulaForImageClassification, recipe: Recipe, data: Split, folder: Path, **options: object
) -> tuple[NulaForImageClassification, dict]:
    """A run in this process, with further RunSettings, and `resume`, as `options`."""
    resume = options.pop("resume", False)
    settings = RunSettings(recipe=recipe, output_dir=folder, **options)
    return train(model, data, Accelerator(cpu=True), settings, resume=resume)


def test_recipes_hold_the_published_values():
    assert OPERATORS == ("resize", "decimate", "checkerboard")
    assert (V0.learning_rate, V0.resize_scale, V0.uniform_amplitude) == (1e-3, (0.2, 0.6), 0.0)
    assert V0.operator_probabilities == (1 / 3, 1 / 3, 1 / 3)
    assert (V1.learning_rate, V1.resize_scale, V1.uniform_amplitude) == (5e-5, (0.2, 0.45), 0.05)
    assert V1.operator_probabilities == (0.5, 0.3, 0.2)
    assert (V1.warmup_epochs, V1.cosine_epochs, V1.restarts) == (2, 8, 0)
    assert V1.vector_rate_factor == 1.0  # one rate for all


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0, must be a positive number"),
        ({"augmented_share": 1.5}, r"augmented_share is 1.5, must be in \[0, 1\]"),
        ({"operator_probabilities": (0.5, 0.5, 0.5)}, "operator_probabilities"),
        ({"resize_scale": (0.6, 0.2)}, "resize_scale"),
        ({"cosine_epochs": 0}, "cosine_epochs"),
        ({"restarts": 0.5}, "restarts is 0.5, must be an integer >= 0"),
        ({"restart_epochs": 0}, "restart_epochs is 0, must be an integer >= 1"),
        ({"restart_dropout": 1}, "restart_dropout is 1, must be None or in"),
    ],
)
def test_impossible_recipes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(V1, **changes)


@pytest.fixture(scope="module")
def v1_log(train_split, tmp_path_factory) -> dict:
    """The log of a whole run of V1's schedule, five steps an epoch."""
    torch.manual_seed(0)
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8, 12, 16), depths=(1, 0, 1)))
    recipe = replace(V1, batch_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nula.train.run.peak_flops", known_speed)
        return train_here(model, recipe, train_split, tmp_path_factory.mktemp("v1"))[1]


def test_a_run_of_v1_follows_the_published_schedule(v1_log):
    rates = [epoch["learning_rate"] for epoch in v1_log["epochs"]]  # of the weights, after each epoch
    warmup = [5e-5 * 2 / 3, 5e-5]  # LinearLR starts from a third
    cosine = [5e-5 * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(1, 9)]
    assert rates == pytest.approx(warmup + cosine, abs=1e-12)


def test_every_parameter_of_v1_has_the_published_rate(tiny_model):
    groups = [group for optimizer in build_optimizers(tiny_model, V1) for group in optimizer.param_groups]
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(tiny_model.parameters()))
    for name, parameter in tiny_model.named_parameters():
        assert rates[id(parameter)] == 5e-5, name


def test_a_run_of_v1_draws_the_published_operators(v1_log):
    counts = {name: sum(epoch["operators"][name] for epoch in v1_log["epochs"]) for name in ("none", *OPERATORS)}
    total = 10 * 320
    augmented = total - counts["none"]
    assert sum(counts.values()) == total
    assert augmented / total == pytest.approx(V1.augmented_share, abs=4 * (0.25 / total) ** 0.5)
    for name, probability in zip(OPERATORS, (0.5, 0.3, 0.2)):
        assert counts[name] / augmented == pytest.approx(probability, abs=4 * (0.25 / augmented) ** 0.5)


def test_schedule_steps_with_every_batch(tiny_model):
    recipe = replace(V0, warmup_epochs=1, cosine_epochs=4, restarts=2, restart_epochs=3, restart_factor=0.15)
    optimizer = build_optimizers(tiny_model, recipe)[0]
    scheduler = build_scheduler(optimizer, recipe, steps_per_epoch=5)
    rates, of_vectors = [], []
    for _ in range(recipe.epochs * 5):
        weights, vectors = optimizer.param_groups
        rates.append(weights["lr"])
        of_vectors.append(vectors["lr"])
        optimizer.step()
        scheduler.step()
    warmup = [1e-3 * (1 + 2 * step / 5) / 3 for step in range(5)]
    cosine = [1e-3 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    restart = [0.15e-3 * (1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert rates == pytest.approx(warmup + cosine + 2 * restart)
    assert of_vectors == pytest.approx([rate * recipe.vector_rate_factor for rate in rates])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_recorded_command_names_no_place_on_the_machine():
    arguments = ["train/train_v0.py", "--dataset=/data/cifar10", "--output_dir", "/home/me/runs/v0", "--resume"]
    expected = "accelerate launch train/train_v0.py --dataset cifar10 --output_dir v0"
    assert command_again("accelerate launch", arguments) == expected


def test_paths_are_published_by_their_last_part_or_their_place_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "my digits").mkdir(parents=True)
    public = {
        "uoft-cs/cifar10": "uoft-cs/cifar10",
        "mnist": "mnist",
        "data/my digits": "my digits",
        "data/none": "none",  # whose folder is there
        "my/own/data": "data",
        "./data": "data",
        "~/data": "data",
        "../data": "data",
        "/home/me/data/": "data",
        ".": tmp_path.name,
        str(ROOT / "releases" / "v1"): "releases/v1",
        str(ROOT / "train" / "train_v0.py"): "train/train_v0.py",
        str(ROOT / "mine" / "v1"): "v1",
        "hidden_sizes=[8,8]": "hidden_sizes=[8,8]",
        "a" * 1000 + "/b": "a" * 1000 + "/b",
    }
    assert {argument: public_argument(argument) for argument in public} == public
    command = ["train_v0.py", "--output_dir", "runs/mine", "--output=runs/yours", "--dataset", "owner/data"]
    expected = "accelerate launch train_v0.py --output_dir mine --output yours --dataset owner/data"
    assert command_again("accelerate launch", command) == expected
    source = DataSource(dataset=str(ROOT / "releases" / "data"))
    assert source.record("train", sorted_by_class([1, 1]))["name"] == "data"


class Parent:
    """In place of `accelerate launch` as the parent of this process."""

    def __init__(self, *options: str):
        self.options = options

    def parent(self) -> "Parent":
        return self

    def cmdline(self) -> list[str]:
        return ["python", "-m", "accelerate.commands.launch", *self.options, "train/train_v0.py"]


@pytest.mark.parametrize(
    ("options", "address", "refused"),
    [
        (("--num_machines", "2", "--num_processes", "2"), "127.0.0.1", True),
        (("--num-machines=2", "--num_processes", "2"), "10.0.0.1", True),
        (("--num_processes", "2"), "10.0.0.1", True),  # the machines may be of a configuration file
        (("--num_machines", "1", "--num_processes", "1"), "10.0.0.1", False),  # of a scheduler's environment
        (("--num_machines", "1", "--num_processes", "1"), None, False),
    ],
)
def test_machines_that_would_train_alone_are_refused(monkeypatch, options, address, refused):
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    if address is not None:
        monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setattr(launcher.psutil, "Process", lambda: Parent(*options))
    monkeypatch.setattr(launcher.os, "execv", lambda *arguments: pytest.fail("processes were started"))
    if refused:
        with pytest.raises(SystemExit, match="starts no processes on the CPUs of several machines"):
            launcher._start_cpu_processes()
    else:
        launcher._start_cpu_processes()


def test_a_tracker_that_cannot_start_is_told_of(tiny_model, train_split, tmp_path, monkeypatch):
    def fail(self: Accelerator, name: str) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    with pytest.raises(ValueError, match="a tracker cannot start: RuntimeError: api_key not configured"):
        train_here(tiny_model, replace(V0, batch_size=64), train_split, tmp_path)


def test_an_accelerator_that_accumulates_gradients_is_refused(tiny_model, train_split, tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    settings = RunSettings(recipe=replace(V0, batch_size=64), output_dir=tmp_path)
    with pytest.raises(ValueError, match="gradients of 4 batches would be accumulated, must be of one"):
        train(tiny_model, train_split, accelerator, settings)


def test_every_parameter_has_its_optimizer(tiny_model):
    adamw, muon = build_optimizers(tiny_model, V0)
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    decayed, vectors = ([names[id(parameter)] for parameter in group["params"]] for group in adamw.param_groups)
    assert decayed == ["nula.stem.convolution.weight", "classifier.weight"]
    assert all("normalization" in name or name.endswith(".bias") for name in vectors)
    assert [group["weight_decay"] for group in adamw.param_groups] == [V0.weight_decay, 0]
    assert [group["lr"] for group in adamw.param_groups] == [1e-3, 1e-3 * V0.vector_rate_factor]
    convolutions = [names[id(parameter)] for parameter in muon.param_groups[0]["params"]]
    assert all("stages" in name and "convolution" in name for name in convolutions)
    assert len(decayed) + len(vectors) + len(convolutions) == len(names)
    [alone] = build_optimizers(tiny_model, replace(V0, optimizer="adamw"))
    assert sum(len(group["params"]) for group in alone.param_groups) == len(names)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_orthogonalization_keeps_singular_vectors_and_levels_the_values(shape, dtype, tolerance):
    matrix = torch.randn(shape, generator=seeded())
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalize(matrix.to(dtype)).float() @ vh.T
    values = inside.diagonal()
    assert (inside - values.diag()).abs().max() < tolerance
    assert 0.6 < values.min() <= values.max() < 1.3


def test_muon_takes_steps_of_the_promised_size_on_weights_of_constant_size():
    weight = torch.nn.Parameter(torch.randn(16, 8, 3, 3, generator=seeded()))
    optimizer = Muon([weight], lr=1e-4, rms=0.01)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.randn(weight.shape, generator=seeded(1))
        optimizer.step()
        assert weight.square().mean().sqrt().item() == pytest.approx(0.01)
    step = (weight - before).square().mean().sqrt().item()
    assert step == pytest.approx(0.2 * 1e-4, rel=0.3)  # Newton-Schulz leaves singular values of 0.7 to 1.2


def test_muon_descends():
    target = torch.nn.functional.normalize(torch.randn(16, 72, generator=seeded()), dim=None)
    weight = torch.nn.Parameter(torch.randn(16, 8, 3, 3, generator=seeded(1)))
    optimizer = Muon([weight], lr=1e-3, rms=0.003)
    for _ in range(100):
        loss = -torch.nn.functional.cosine_similarity(weight.flatten(), target.flatten(), dim=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < -0.8


def test_v0_and_v1_draw_apart():
    assert run_seed(V0, 0) == run_seed(replace(V0, batch_size=64), 0)
    assert len({run_seed(recipe, seed) for recipe in (V0, V1) for seed in range(3)}) == 6


def test_batches_are_a_new_permutation_each_epoch():
    recipe = replace(V0, batch_size=128)
    first, second = (batch_indices(320, epoch, recipe, seed=0) for epoch in (0, 1))
    assert first.shape == (2, 128)
    assert len(first.unique()) == 256
    assert not torch.equal(first, second)
    assert torch.equal(first, batch_indices(320, 0, recipe, seed=0))


def test_crop_and_flip_without_either_is_the_image(train_split):
    still = replace(V0, crop_padding=0, flip_probability=0.0)
    indices = torch.tensor([5, 0, 7])
    pixels = crop_and_flip(train_split.images, indices, still, seeded())
    assert torch.equal((pixels * 255).round().byte().permute(0, 2, 3, 1), train_split.images[indices])
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    flipped = crop_and_flip(train_split.images, indices, replace(still, flip_probability=1.0), seeded())
    assert torch.equal(flipped, pixels.flip(3))


def test_crop_is_a_crop_of_the_reflected_image(train_split):
    recipe = replace(V0, crop_padding=2, flip_probability=0.0)
    indices = torch.arange(320)  # draws enough that each of the 25 offsets comes up
    moved = crop_and_flip(train_split.images, indices, recipe, seeded())
    padded = torch.nn.functional.pad(
        train_split.images[indices].permute(0, 3, 1, 2).float() / 255, (2,) * 4, mode="reflect"
    )
    offsets = set()
    for image, larger in zip(moved, padded):
        windows = larger.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 5, 5, 32, 32)
        found = (windows == image[:, None, None]).all(dim=(0, 3, 4)).nonzero().tolist()
        assert found
        offsets.update(map(tuple, found))
    assert len(offsets) == 25  # every offset of -2..2 along both axes


def test_only_the_masked_part_is_perturbed_and_each_by_its_operator(pixels):
    recipe = replace(V0, augmented_share=0.5, checkerboard_epsilon=(0.05, 0.05))
    result, operators = perturb(pixels, recipe, seeded(3))
    assert set(operators.tolist()) == {0, 1, 2, 3}
    expected = {0: pixels, 2: decimate(pixels), 3: checkerboard(pixels, 0.05)}
    for index, operator in enumerate(operators.tolist()):
        if operator in expected:
            assert torch.equal(result[index], expected[operator][index])
        else:
            assert not torch.equal(result[index], pixels[index])


def test_uniform_noise_comes_before_the_operator_and_on_the_masked_part_alone(pixels):
    recipe = replace(V1, augmented_share=0.5, operator_probabilities=(0.0, 1.0, 0.0))
    result, operators = perturb(pixels, recipe, seeded())
    assert torch.equal(result[operators == 0], pixels[operators == 0])
    perturbed, original = result[operators > 0], decimate(pixels)[operators > 0]
    assert torch.equal(perturbed, decimate(perturbed))  # noise after decimation would break the 2x2 blocks
    assert 0.04 < (perturbed - original).abs().max() <= 0.05 + 1e-6


# 15 steps
SHORT = ("--recipe", "batch_size=64", "warmup_epochs=1", "cosine_epochs=1", "restarts=1", "restart_epochs=1")
SHORT += ("--config", "hidden_sizes=[16,16,32]", "depths=[1,0,1]")


def start(output_dir: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """The short run as a process of its own, in a process group of its own, with a checkpoint every other step."""
    command = [sys.executable, *launcher, "train/train_v0.py", "--dataset", SAMPLE, "--output_dir", output_dir]
    return subprocess.Popen(
        [*map(str, command), *SHORT, "--checkpoint_steps", "2", *arguments],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_here(output_dir: Path, *arguments: object, **launcher: str) -> None:
    """The short run in this process, which saves the start of one; `launcher` are what accelerate's would set."""
    command = ["train/train_v0.py", "--dataset", SAMPLE, "--output_dir", output_dir, *SHORT, "--checkpoint_steps", "2"]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*map(str, command), *map(str, arguments)])
            patch.setattr("nula.train.launch.keep_memory", lambda device: None)
            for name, value in ({"use_cpu": "true"} | launcher).items():
                patch.setenv(f"ACCELERATE_{name.upper()}", value)
            train_v0.main()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """A finished short run, with the speed of this machine in its record."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder)
    return folder


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint").is_dir():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def resumed_sha256(folder: Path) -> str:
    run_here(folder, "--resume")
    return weights_sha256(folder)


def test_a_killed_run_resumes_to_the_same_weights(uninterrupted, tmp_path):
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.kill()
    process.wait()
    assert not (tmp_path / "model.safetensors").exists()
    assert resumed_sha256(tmp_path) == weights_sha256(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(uninterrupted, tmp_path, capsys, number):
    def save_and_ask(*arguments: object) -> None:
        save_checkpoint(*arguments)
        signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nula.train.run.save_checkpoint", save_and_ask)
        with pytest.raises(SystemExit) as stopped:
            run_here(tmp_path)
    output = capsys.readouterr().out
    assert stopped.value.code == 128 + number, output
    step = int(re.search(r"interrupted after step (\d+) of 15; the same command with --resume", output).group(1))
    assert step == 3  # asked at the checkpoint of step 2
    assert torch.load(tmp_path / "checkpoint" / "custom_checkpoint_0.pkl", weights_only=False)["step"] == step
    assert resumed_sha256(tmp_path) == weights_sha256(uninterrupted)


def test_a_launcher_that_is_asked_to_stop_takes_the_run_with_it(tmp_path):
    process = start(tmp_path, launcher=("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"))
    wait_for_checkpoint(process, tmp_path)
    process.terminate()
    output, _ = process.communicate(timeout=60)  # which waits for the run, as that has the launcher's output
    assert re.search(r"interrupted after step \d+ of 15; the same command with --resume", output), output


@pytest.mark.parametrize("step", [4, 10, 12])  # in the first cycle, at its end, and after it
def test_a_run_goes_on_in_either_cycle(uninterrupted, tmp_path, step):
    run_here(tmp_path, "--max_steps", step)
    assert weights_sha256(tmp_path) != weights_sha256(uninterrupted)
    assert resumed_sha256(tmp_path) == weights_sha256(uninterrupted)


def test_a_run_in_bfloat16_keeps_float32_weights_and_resumes_to_them(uninterrupted, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, *arguments in ((whole,), (parts, "--max_steps", "6"), (parts, "--resume")):
        run_here(folder, *arguments, mixed_precision="bf16")
    assert weights_sha256(parts) == weights_sha256(whole) != weights_sha256(uninterrupted)
    floats = [tensor.dtype for tensor in load_file(whole / "model.safetensors").values() if tensor.is_floating_point()]
    assert set(floats) == {torch.float32}
    assert json.loads((whole / "training.json").read_text())["hardware"]["mixed_precision"] == "bf16"
    with pytest.raises(SystemExit, match="mixed_precision is 'no', was 'bf16'"):
        run_here(parts, "--resume")


def test_a_trained_model_computes_in_float32(tiny_model, train_split, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    settings = RunSettings(recipe=replace(V0, batch_size=64), output_dir=tmp_path, max_steps=1)
    model, _ = train(tiny_model, train_split, accelerator, settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    model.save_pretrained(tmp_path / "saved")
    saved, pixels = NulaForImageClassification.from_pretrained(tmp_path / "saved"), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels).logits, saved.eval()(pixels).logits)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc alone")
def test_memory_is_kept_on_a_cpu():
    code = """
import resource, sys, torch
from nula.runtime.launcher import keep_memory
if sys.argv[1] == "kept":
    keep_memory(torch.device("cpu"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(20):
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    )
    assert kept < returned / 2  # pages that the kernel had to clear


def test_two_runs_do_not_share_a_folder(tiny_model, train_split, tmp_path):
    recipe = replace(V0, batch_size=64)
    with only_writer(tmp_path), pytest.raises(FileExistsError, match="another run is at work in"):
        train_here(tiny_model, recipe, train_split, tmp_path, max_steps=1)
    train_here(tiny_model, recipe, train_split, tmp_path, max_steps=1)


def test_weights_that_are_not_finite_are_not_saved(tiny_model, train_split, tmp_path, monkeypatch):
    """The loss and the gradients of the step are finite, and what the optimiser makes of them is not."""
    step = torch.optim.AdamW.step

    def overflow(self, closure=None):
        step(self)
        self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(FloatingPointError, match="after step 1 weights or batch statistics are not finite"):
        train_here(
            tiny_model,
            replace(V0, batch_size=64),
            train_split,
            tmp_path,
            checkpoint_steps=1,
        )
    assert not (tmp_path / "checkpoint").exists()


TWO = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")  # what TWO ends in


def test_two_processes_that_are_asked_to_stop_resume_to_the_same_weights(tmp_path):
    process = start(tmp_path / "whole", launcher=TORCHRUN)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    folder = tmp_path / "parts"
    process = start(folder, launcher=TWO)
    wait_for_checkpoint(process, folder)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C sends
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"interrupted after step \d+ of 15; the same command with --resume", output), output
    process = start(folder, "--resume", launcher=TORCHRUN)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert weights_sha256(folder) == weights_sha256(tmp_path / "whole")
    records = [json.loads((path / "training.json").read_text()) for path in (tmp_path / "whole", folder)]
    whole, parts = ([(epoch["loss"], epoch["operators"]) for epoch in record["epochs"]] for record in records)
    assert whole == parts


def test_the_record_tells_the_whole_run(uninterrupted):
    text = (uninterrupted / "training.json").read_text()
    assert str(uninterrupted.parent) not in text
    record = json.loads(text)
    changed = replace(V0, batch_size=64, warmup_epochs=1, cosine_epochs=1, restarts=1, restart_epochs=1)
    assert record["recipe"] == json.loads(json.dumps(asdict(changed)))
    assert record["dataset"]["sha256"] == load_split(str(SAMPLE), "train").fingerprint
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3]
    model = NulaForImageClassification.from_pretrained(uninterrupted)
    multiply_adds = multiply_adds_of(model)
    # Forward, and backward to weights and inputs; no gradient of the pixels is computed.
    assert record["flops_per_image"] == 6 * sum(multiply_adds) - 2 * multiply_adds[0]
    seconds = sum(epoch["seconds"] for epoch in record["epochs"])
    assert record["seconds"] == pytest.approx(seconds, abs=0.06)  # kept with one digit, and a run is under a second
    assert record["images_per_second"] == pytest.approx(3 * 320 / seconds, rel=0.05)
    possible = sum(epoch["seconds"] * epoch["peak_flops"] for epoch in record["epochs"])
    share = 3 * 320 * record["flops_per_image"] / possible
    assert record["peak_share"] == pytest.approx(share, abs=0.001)
    assert 0 < share < 1
    assert (uninterrupted / "configuration_nula.py").is_file()


def multiply_adds_of(model: NulaForImageClassification, side: int = 32) -> list[int]:
    """Of each convolution and linear layer for an image of `side` pixels a side, in order."""
    counts = []

    def count(module, inputs, output):
        positions = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        counts.append(module.weight.numel() * positions)

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    model.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return counts


def test_validation_images_are_held_out_and_measured(tmp_path, capsys):
    run_here(tmp_path, "--validation_images", "64", "--report_to", "tensorboard", dynamo_backend="EAGER")
    lines = capsys.readouterr().out.splitlines()
    assert "held out of training, and measured on: 64 images, the last of the split." in lines
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["dataset"]["images"] == 256
    assert record["hardware"]["dynamo_backend"] == "eager"
    assert record["hardware"]["accelerate"] == {"dynamo_backend": "EAGER", "use_cpu": "true"}
    assert tuple(record["validation"]) == tuple(row_title(row.name, of_cifar10=False) for row in ROWS)
    model = NulaForImageClassification.from_pretrained(tmp_path).eval()
    split = load_split(str(SAMPLE), "train")
    pixels = split.images[-64:].permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        correct = model(normalize(pixels)).logits.argmax(1) == split.labels[-64:]
    assert 0.05 < record["temperature"] < 20
    assert json.loads((tmp_path / "config.json").read_text())["calibration_temperature"] == record["temperature"]
    held_out = load_split(str(SAMPLE), "train").part_off(torch.arange(256, 320))[1]
    assert record["held_out"] == {"images": 64, "sha256": held_out.fingerprint, "choice": "last"}
    assert record["validation"]["Clean"] == pytest.approx(100 * correct.float().mean().item(), abs=0.01)
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    assert {"loss", "learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [10]


def sorted_by_class(sizes: list[int]) -> Split:
    """As a folder of images in a folder for each class is."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3).contiguous()
    return Split.of(images, labels, tuple("abcdefghij"[: len(sizes)]))


def test_images_sorted_by_class_are_held_out_of_each():
    split = sorted_by_class([60, 30, 10])
    kept, held_out = hold_out(split, 20)
    assert held_out.images.labels.bincount().tolist() == [12, 6, 2]
    assert kept.labels.bincount().tolist() == [48, 24, 8]
    chosen = stratified(split.labels, 20, seed=0)
    assert torch.equal(held_out.images.images, split.images[chosen])
    assert held_out.record() == {
        "images": 20,
        "sha256": split.take(chosen).fingerprint,
        "choice": "stratified",
        "seed": 0,
    }
    assert held_out.line().endswith("20 images, of each class its share, drawn by seed 0, as the last ones are not.")
    shuffled = split.take(torch.randperm(100, generator=seeded()))
    kept, held_out = hold_out(shuffled, 20)
    assert (held_out.choice, held_out.of_cifar10) == ("last", False)
    assert torch.equal(held_out.images.images, shuffled.images[-20:])
    assert torch.equal(kept.images, shuffled.images[:-20])


@pytest.mark.parametrize(
    ("sizes", "count", "message"),
    [
        (
            [60, 39, 1],
            20,
            "--validation_images 20: 20 of 100 images, of each class its share, leave 1 of 3",
        ),
        ([60, 39, 1], 60, "--validation_images 60 leave no image of class 'c' to train on"),
        ([60, 39, 1], 100, "cannot hold out 100 of 100 images; give 1 to 99"),
    ],
)
def test_a_choice_that_lacks_a_class_is_refused(sizes, count, message):
    with pytest.raises(ValueError, match=message):
        hold_out(sorted_by_class(sizes), count)


def test_the_rule_of_the_trials_holds_for_cifar10():
    """The last 5,000 training images, whose classes are counted here, have each class's share."""
    counts = torch.tensor([493, 488, 479, 519, 475, 529, 488, 485, 532, 512])
    last = torch.arange(10).repeat_interleave(counts)
    labels = torch.cat([torch.arange(10).repeat_interleave(5000 - counts), last])
    assert has_shares(labels, torch.arange(45_000, 50_000))
    assert not has_shares(torch.arange(10).repeat_interleave(5000), torch.arange(45_000, 50_000))


def test_processes_that_end_apart_are_refused():
    model = torch.nn.Linear(2, 1)
    check_agreement(model, SimpleNamespace(gather=lambda own: torch.cat([own, own])))
    with pytest.raises(RuntimeError, match="ended with different parameters"):
        check_agreement(model, SimpleNamespace(gather=lambda own: torch.cat([own, own + 1e-6])))


def test_two_processes_train_every_parameter(tmp_path, tiny_folder):
    arguments = ("--v0", tiny_folder, "--output_dir", tmp_path, "--max_steps", 4, "--recipe", "batch_size=128")
    done = launch("finetune_v1.py", *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["hardware"]["processes"] == 2
    assert record["initial_weights_sha256"] == weights_sha256(tiny_folder)
    assert len(record["epochs"]) == 2  # 320 images are two steps an epoch of 128 over both processes
    assert sum(record["epochs"][0]["operators"].values()) == 256  # of both
    tuned, before = (NulaForImageClassification.from_pretrained(folder) for folder in (tmp_path, tiny_folder))
    changed = [not torch.equal(a, b) for a, b in zip(tuned.parameters(), before.parameters())]
    assert all(changed)  # nothing is frozen


STATISTICS = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from nula.data import load_split
from nula.records.weights import load_model
from nula.train.loop import train
from nula.train.recipe import Recipe
from nula.train.run import RunSettings
dataset, start, folder, recipe = sys.argv[1:]
recipe = Recipe(**{name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(recipe).items()})
accelerator = Accelerator(cpu=True)
settings = RunSettings(recipe=recipe, output_dir=Path(folder), max_steps=2)
model, _ = train(load_model(start), load_split(dataset, "train"), accelerator, settings)
torch.save(model.state_dict(), Path(folder) / f"rank{accelerator.process_index}.pt")
"""


def test_statistics_of_two_processes_are_those_of_all_images(tmp_path, tiny_model):
    """Nothing is drawn and the rate is next to nothing, so that what comes to the first normalisation is known."""
    tiny_model.config.stem_dropout = 0.0
    tiny_model.save_pretrained(tmp_path / "start")
    still = {"restarts": 0, "restart_dropout": None, "learning_rate": 1e-12}
    recipe = replace(unaugmented(V0), batch_size=128, optimizer="adamw", **still)
    (tmp_path / "program.py").write_text(STATISTICS)
    command = [sys.executable, *TORCHRUN, tmp_path / "program.py", SAMPLE, tmp_path / "start", tmp_path / "run"]
    done = subprocess.run(
        [*map(str, command), json.dumps(asdict(recipe))],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / "run" / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    model, split = load_model(tmp_path / "start"), load_split(str(SAMPLE), "train")
    layer = "nula.stages.0.widening.normalization"
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batches = batch_indices(320, 0, recipe, run_seed(recipe, 0))
    with torch.no_grad():
        for batch in batches[:2]:
            model(normalize(to_pixels(split.images[batch])))
    mean, variance = torch.zeros(8), torch.ones(8)
    for features in seen:
        by_channel = [share.transpose(0, 1).flatten(1) for share in features.chunk(2)]  # of each process
        mean = 0.9 * mean + 0.1 * torch.stack([values.mean(dim=1) for values in by_channel]).mean(dim=0)
        variance = 0.9 * variance + 0.1 * torch.stack([values.var(dim=1) for values in by_channel]).mean(dim=0)
    torch.testing.assert_close(first[f"{layer}.running_mean"], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first[f"{layer}.running_var"], variance, rtol=1e-4, atol=1e-6)
    alone = seen[0].chunk(2)[0].transpose(0, 1).flatten(1).mean(dim=1)  # what the first process sees of the first batch
    both = seen[0].transpose(0, 1).flatten(1).mean(dim=1)
    assert (alone - both).abs().max() > 1e-3


def test_restarts_have_their_own_dropout(tiny_model, train_split, tmp_path):
    recipe = replace(V0, warmup_epochs=1, cosine_epochs=1, restarts=1, restart_epochs=1, batch_size=64)
    zeros = []
    tiny_model.nula.stem.dropout.register_forward_hook(
        lambda module, inputs, output: zeros.append(float((output[inputs[0] > 0] == 0).float().mean()))
    )
    before = tiny_model.config.stem_dropout
    train_here(
        tiny_model,
        replace(recipe, restart_dropout=0.75),
        train_split,
        tmp_path / "own",
    )
    per_epoch = [sum(part) / 5 for part in (zeros[1:6], zeros[6:11], zeros[11:])]  # the first forward counts operations
    assert per_epoch == pytest.approx([before, before, 0.75], abs=0.01)


def test_every_cycle_ends_with_the_mean_of_all_and_the_next_goes_on_from_there(tiny_model, train_split, tmp_path):
    recipe = replace(
        V0, warmup_epochs=1, cosine_epochs=1, restarts=2, restart_epochs=1, learning_rate=0.05, batch_size=64
    )
    starts, ends, step, update = [], [], torch.optim.AdamW.step, AveragedModel.update_parameters

    def noted_step(self, closure=None):
        starts.append(tiny_model.nula.stem.convolution.weight.detach().clone())
        step(self)

    def noted_end(self, model):
        ends.append((len(starts), {name: tensor.clone() for name, tensor in model.state_dict().items()}))
        update(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted_step)
        patch.setattr(AveragedModel, "update_parameters", noted_end)
        trained, _ = train_here(
            tiny_model,
            recipe,
            train_split,
            tmp_path,
        )
    steps, (first, second, third) = zip(*ends)
    assert steps == (10, 15, 20)  # five an epoch
    stem = "nula.stem.convolution.weight"
    assert torch.equal(starts[10], first[stem])
    torch.testing.assert_close(starts[15], (first[stem] + second[stem]) / 2)
    saved = load_file(tmp_path / "checkpoint" / "model.safetensors")
    for name, tensor in trained.state_dict().items():
        if tensor.is_floating_point():  # weights and statistics of batch normalisation
            torch.testing.assert_close(tensor, (first[name] + second[name] + third[name]) / 3)
            assert torch.equal(tensor, saved[name])
    assert min((first[stem] - second[stem]).abs().max(), (second[stem] - third[stem]).abs().max()) > 1e-3


@pytest.mark.parametrize("recipe", [V0, V1], ids=lambda recipe: recipe.name)
def test_four_steps_give_the_weights_that_they_always_gave(recipe, train_split, tmp_path):
    """`four_steps.safetensors` was made by the code of commit d190f59, by the same steps."""
    torch.manual_seed(0)
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(4, 6), depths=(1, 0)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained, _ = train_here(model, replace(recipe, batch_size=32), train_split, tmp_path, max_steps=4)
    golden, state = load_file(SAMPLE.parent / "four_steps.safetensors"), trained.state_dict()
    expected = {name.partition(".")[2]: tensor for name, tensor in golden.items() if name.startswith(recipe.name)}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5)
    assert max((state[name] - before[name]).abs().max().item() for name in expected) > 1e-3


def test_training_learns(tiny_model, train_split, tmp_path):
    recipe = replace(V0, warmup_epochs=1, cosine_epochs=9, restarts=0, batch_size=32, label_smoothing=0.0)
    _, log = train_here(
        tiny_model,
        recipe,
        train_split,
        tmp_path,
    )
    assert len(log["epochs"]) == 10
    assert log["epochs"][-1]["loss"] < log["epochs"][0]["loss"] - 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "share=1"), "error: --recipe share=1: must be FIELD=VALUE with FIELD one of learning_rate"),
        (("--recipe", "batch_size"), "error: --recipe batch_size: must be FIELD=VALUE"),
        (("--recipe", "batch_size=many"), "error: recipe 'v0': batch_size is 'many', must be an integer >= 1"),
        (("--config", "depths=[1]"), "error: depths has 1 entries and hidden_sizes 4"),
        (("--recipe", "learning_rate=fast"), "error: recipe 'v0': learning_rate is 'fast', must be a positive number"),
        (("--recipe", "resize_scale=[0.2]"), "error: recipe 'v0': resize_scale is (0.2,), must be 0 < low <= high"),
        (("--recipe", "name=mine"), "error: --recipe name=mine: must be FIELD=VALUE"),
        (("--validation_images", "320"), "error: cannot hold out 320 of 320 images; give 1 to 319"),
        (("--report_to", "nothing"), "error: --report_to nothing is not installed; installed trackers: "),
        (("--report_to", "tensorboard,wandbb"), "error: --report_to wandbb is not installed; installed trackers: "),
        (("--recipe", "learning_rate=NaN"), "error: recipe 'v0': learning_rate is nan, must be a positive number"),
        (("--recipe", "weight_decay=-1"), "error: recipe 'v0': weight_decay is -1, must be a number >= 0"),
        (
            ("--minutes", "2", "--recipe", "cosine_epochs=3"),
            "error: --minutes choose the cosine_epochs; leave them out of",
        ),
        (("--recipe", 'resize_kernels=["cubic"]'), "error: recipe 'v0': resize_kernels is ('cubic',), must be some of"),
        (("--recipe", "noise_sigma=0.1"), "error: recipe 'v0': noise_sigma is 0.1, must be 0 <= low <= high"),
        (("--recipe", "cutout_size=0"), "error: recipe 'v0': cutout_size is 0, must be an integer >= 1"),
        (("--recipe", "views=0"), "error: recipe 'v0': views is 0, must be an integer >= 1"),
        (("--recipe", "augmix_share=2"), "error: recipe 'v0': augmix_share is 2, must be in [0, 1]"),
        (("--recipe", "whitening_epsilon=0"), "error: recipe 'v0': whitening_epsilon is 0, must be None or positive"),
        (("--config", "layer_convolutions=0"), "error: layer_convolutions must be an integer of at least 1, got 0"),
        (("--dataset", "data/../my digits"), "error: --dataset data/../my digits: there is no such folder; give a fo"),
    ],
)
def test_impossible_arguments_are_named(tmp_path, monkeypatch, arguments, message):
    command = ["train_v0.py", "--dataset", str(SAMPLE), "--output_dir", str(tmp_path / "run"), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        train_v0.main()
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "gradient_accumulation_steps",
            "4",
            "ACCUMULATION_STEPS=4: gradients are of one batch each, whose size",
        ),
        ("use_fsdp", "true", "ACCELERATE_USE_FSDP=true: training with FSDP is not supported; it comes from"),
        ("use_deepspeed", "1", "training with DeepSpeed is not supported"),
        ("mixed_precision", "fp16", "mixed precision fp16 is not supported, as two optimisers would share its scaler"),
        ("mixed_precision", "fp8", "mixed precision fp8 is not supported; take bf16 or no"),
    ],
)
def test_what_would_change_training_unseen_is_refused(tmp_path, name, value, message):
    with pytest.raises(SystemExit, match=message):
        run_here(tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1e3"])
def test_a_seed_that_cannot_be_is_named(tmp_path, capsys, seed):
    with pytest.raises(SystemExit):
        run_here(tmp_path / "run", f"--seed={seed}")
    assert (
        f"argument --seed: '{seed}' must be an integer of at least 0 and at most 4294967295" in capsys.readouterr().err
    )


def test_help_tells_defaults_that_there_are():
    text = build_parser("Train.").format_help()
    assert "(default: None)" not in text
    assert "(default: 0)" in text


def test_impossible_runs_are_refused(tiny_model, train_split, tmp_path):
    small = replace(V0, batch_size=64)

    def attempt(recipe=small, seed=0, folder=tmp_path / "run", **options):
        train_here(deepcopy(tiny_model), recipe, train_split, folder, seed=seed, **options)

    attempt(folder=tmp_path / "longer", max_steps=2)
    with pytest.raises(ValueError, match="max_steps is 1, and the checkpoint is of step 2 already"):
        attempt(folder=tmp_path / "longer", max_steps=1, resume=True)
    with pytest.raises(ValueError, match="320 images are fewer than one batch of 512"):
        attempt(replace(V0, batch_size=512))
    attempt(max_steps=1)
    with pytest.raises(FileExistsError, match="run holds a run already: go on from its checkpoint with --resume"):
        attempt(max_steps=1)
    with pytest.raises(ValueError, match=r"another run than that of the checkpoint .*: seed is 1, was 0"):
        attempt(seed=1, resume=True)
    with pytest.raises(ValueError, match=r"another run than that of the checkpoint .*: name is 'v1', was 'v0'"):
        attempt(replace(V1, batch_size=64), resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to --output_dir .*file/run: .*; give another folder"):
        attempt(folder=tmp_path / "file" / "run")


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    tiny_model, train_split, tmp_path, monkeypatch, factor
):
    recipe = replace(V0, batch_size=64)
    losses = []

    def broken(*arguments, **options):
        losses.append(torch.nn.functional.cross_entropy(*arguments, **options))
        return losses[-1] * factor if len(losses) == 3 else losses[-1]

    monkeypatch.setattr("nula.train.run.F", SimpleNamespace(cross_entropy=broken))
    with pytest.raises(FloatingPointError) as caught:
        train_here(tiny_model, recipe, train_split, tmp_path, checkpoint_steps=1)
    assert re.search(
        rf"^loss {factor}, norm of the gradients \S+ at step 2, learning rate 0\.0006, batch [0-9a-f]{{64}} ",
        str(caught.value),
    )
    saved = load_file(tmp_path / "checkpoint" / "model.safetensors")
    for name, tensor in tiny_model.named_parameters():
        assert torch.equal(saved[name], tensor)
        assert tensor.isfinite().all()


def test_a_run_killed_between_two_checkpoints_keeps_one(tiny_model, train_split, tmp_path):
    """What a kill leaves between the two renames of a swap: the one before it as checkpoint.old, the new one."""
    recipe = replace(V0, batch_size=64)
    train_here(deepcopy(tiny_model), recipe, train_split, tmp_path, max_steps=2)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.new").mkdir()
    with pytest.raises(FileExistsError):
        train_here(
            tiny_model,
            recipe,
            train_split,
            tmp_path,
        )
    train_here(tiny_model, recipe, train_split, tmp_path, max_steps=3, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "checkpoint"}


def test_a_full_disk_is_noticed_before_training(tiny_model, train_split, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"has 0 MiB free, and a run needs \d+ MiB; make room"):
        train_here(
            tiny_model,
            replace(V0, batch_size=64),
            train_split,
            tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(tiny_model, train_split, tmp_path):
    """Files may not grow beyond 8 kB from the second checkpoint on, which is how a full disk looks to a writer."""
    recipe = replace(V0, batch_size=64)
    accelerator, settings = Accelerator(cpu=True), RunSettings(recipe=recipe, output_dir=tmp_path, checkpoint_steps=2)
    save_state, limits = accelerator.save_state, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(folder: str) -> None:
        if (tmp_path / "checkpoint").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
        save_state(folder)

    accelerator.save_state = fill_up
    try:
        with pytest.raises(OSError, match=r"checkpoint could not be written .*; the checkpoint before it is whole"):
            train(deepcopy(tiny_model), train_split, accelerator, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "checkpoint"}
    _, log = train_here(tiny_model, recipe, train_split, tmp_path, max_steps=5, resume=True)
    assert [epoch["epoch"] for epoch in log["epochs"]] == [1]


@pytest.mark.parametrize("name", ["identity.json", "model.safetensors", "optimizer.bin", "custom_checkpoint_1.pkl"])
def test_a_damaged_checkpoint_is_told_of(tiny_model, train_split, tmp_path, name):
    recipe = replace(V0, batch_size=64)
    train_here(deepcopy(tiny_model), recipe, train_split, tmp_path, max_steps=1)
    damaged = tmp_path / "checkpoint" / name
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(OSError, match=r"the checkpoint .*checkpoint cannot be read \(.+\); if it is damaged"):
        train_here(tiny_model, recipe, train_split, tmp_path, resume=True)


def test_a_run_is_resumed_from_nothing_by_beginning(tiny_model, train_split, tmp_path, capsys):
    recipe = replace(V0, batch_size=64)
    model, _ = train_here(deepcopy(tiny_model), recipe, train_split, tmp_path / "a", max_steps=2, resume=True)
    assert f"there is no checkpoint in {tmp_path / 'a'}: beginning." in capsys.readouterr().out
    (tmp_path / "b" / "checkpoint.new").mkdir(parents=True)  # what a run killed in its first checkpoint leaves
    for last in (1, 2, 2):  # the same command three times, ended early the first time
        again, _ = train_here(deepcopy(tiny_model), recipe, train_split, tmp_path / "b", max_steps=last, resume=True)
    assert capsys.readouterr().out.count(": beginning.") == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match="holds a run already: delete the folder, or give another --output_dir"):
        train_here(tiny_model, recipe, train_split, tmp_path / "c", resume=True)


def test_weights_without_a_checkpoint_are_kept(tiny_model, train_split, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match="holds a run already: delete the folder, or give another --output_dir"):
        train_here(
            tiny_model,
            replace(V0, batch_size=64),
            train_split,
            tmp_path,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}


def test_results_that_cannot_be_written_are_told_of(tiny_model, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    message = r"results could not be written .*; its checkpoint is whole: once that is mended"
    with pytest.raises(OSError, match=message), _writing(tmp_path):
        tiny_model.save_pretrained(tmp_path)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_released_weights_come_from_the_recipe(version):
    recipe = frozen_recipe(version)
    record = json.loads((ROOT / "releases" / version / "training.json").read_text())
    assert record["weights_sha256"] == weights_sha256(ROOT / "releases" / version)
    expected = json.loads(json.dumps(asdict(recipe)))
    # A record may have fields since removed, and lacks those added since, whose defaults leave out what they are about.
    assert {field: value for field, value in expected.items() if record["recipe"].get(field, value) != value} == {}
    added = {field.name: field.default for field in fields(Recipe) if field.name not in record["recipe"]}
    assert all(getattr(recipe, name) == default for name, default in added.items())
    assert record["architecture"] == {field: getattr(NulaConfig(), field) for field in record["architecture"]}
    assert record["max_steps"] is None
    assert record["dataset"]["images"] == 50_000
    assert len(record["epochs"]) == recipe.epochs
    assert max(epoch["augmentation_share"] for epoch in record["epochs"]) <= 0.05


def test_released_v1_is_tuned_from_the_released_v0():
    record = json.loads((ROOT / "releases" / "v1" / "training.json").read_text())
    assert record["initial_weights_sha256"] == weights_sha256(ROOT / "releases" / "v0")


def _rates(recipe: Recipe, steps: int) -> list[float]:
    """The first learning rate after each epoch of `steps` steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    scheduler = build_scheduler(optimizer, recipe, steps)
    rates = []
    for _ in range(recipe.epochs):
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize("folder", ["v1", "v0/seeds/1", "v1/seeds/1"])
def test_a_run_in_one_go_followed_the_schedule(folder):
    recipe = frozen_recipe(folder.partition("/")[0])
    record = json.loads((ROOT / "releases" / folder / "training.json").read_text())
    expected = json.loads(json.dumps(asdict(recipe)))
    # A record lacks the fields that were added since, whose defaults leave out what they are about.
    assert record["recipe"] == {field: expected[field] for field in record["recipe"]}
    assert [epoch["epoch"] for epoch in record["epochs"]] == list(range(1, recipe.epochs + 1))
    rates = [epoch["learning_rate"] for epoch in record["epochs"]]
    assert rates == pytest.approx(_rates(recipe, 50_000 // recipe.batch_size), rel=1e-6, abs=1e-12)
    assert max(rates) <= recipe.learning_rate


def test_another_seed_is_measured_and_tuned_from_its_own_v0():
    folders = [ROOT / "releases" / version / "seeds" / "1" for version in ("v0", "v1")]
    v0, v1 = (json.loads((folder / "training.json").read_text()) for folder in folders)
    assert v0["seed"] == v1["seed"] == 1
    assert v1["initial_weights_sha256"] == v0["weights_sha256"]
    for folder, record in zip(folders, (v0, v1), strict=True):
        provenance = Table.load(folder / "results").provenance
        assert provenance["weights_sha256"] == record["weights_sha256"]
        assert (provenance["dataset"]["split"], provenance["dataset"]["images"]) == ("test", 10_000)
