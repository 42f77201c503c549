import json
from dataclasses import asdict, replace

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, SAMPLE, launch

from nula.dataset import load_split
from nula.modeling_nula import NulaForImageClassification
from nula.perturbations.sampling import checkerboard, decimate
from nula.provenance import command_again
from nula.train.augmentation import crop_and_flip, draw_operators, perturb
from nula.train.loop import batch_indices, build_optimizer, build_scheduler, train
from nula.train.recipe import OPERATORS, V0, V1, Recipe
from nula.weights import weights_sha256


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_recipes_hold_the_published_values():
    assert OPERATORS == ("resize", "decimate", "checkerboard")
    assert (V0.learning_rate, V0.resize_scale, V0.uniform_amplitude) == (1e-3, (0.2, 0.6), 0.0)
    assert V0.operator_probabilities == (1 / 3, 1 / 3, 1 / 3)
    assert (V1.learning_rate, V1.resize_scale, V1.uniform_amplitude) == (5e-5, (0.2, 0.45), 0.05)
    assert V1.operator_probabilities == (0.5, 0.3, 0.2)
    assert (V1.warmup_epochs, V1.cosine_epochs) == (2, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0, must be positive"),
        ({"augmented_share": 1.5}, r"augmented_share is 1.5, must be in \[0, 1\]"),
        ({"operator_probabilities": (0.5, 0.5, 0.5)}, "operator_probabilities"),
        ({"resize_scale": (0.6, 0.2)}, "resize_scale"),
        ({"cosine_epochs": 0}, "cosine_epochs"),
    ],
)
def test_impossible_recipes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(V1, **changes)


def learning_rates(model: NulaForImageClassification, recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The rate of every step of a run, and last the one that it ends with."""
    optimizer = build_optimizer(model, recipe)
    scheduler = build_scheduler(optimizer, recipe, steps_per_epoch)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(recipe.epochs * steps_per_epoch):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_schedule_of_v1(tiny_model):
    rates = learning_rates(tiny_model, V1, steps_per_epoch=5)
    assert rates[0] == pytest.approx(5e-5 / 3)
    assert rates[5] == pytest.approx(5e-5 * 2 / 3)
    assert rates[10] == pytest.approx(5e-5)  # the warm-up's 2 epochs end
    assert rates[30] == pytest.approx(5e-5 / 2)  # half of the 8 cosine epochs
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_v0_anneals_twice(tiny_model):
    rates = learning_rates(tiny_model, V0, steps_per_epoch=4)
    first, second = V0.warmup_epochs * 4, (V0.warmup_epochs + V0.cosine_epochs) * 4
    assert rates[first] == rates[second] == pytest.approx(1e-3)
    assert rates[second - 1] < 1e-5 * 2
    assert rates[second + V0.restart_epochs * 2] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(0, abs=1e-10)


def test_the_recorded_command_names_no_place_on_the_machine():
    arguments = ["train/train_v0.py", "--dataset=/data/cifar10", "--output_dir", "/home/me/runs/v0", "--resume"]
    expected = "accelerate launch train/train_v0.py --dataset cifar10 --output_dir v0"
    assert command_again("accelerate launch", arguments) == expected


def test_batch_normalisation_and_biases_are_not_decayed(tiny_model):
    decayed, others = build_optimizer(tiny_model, V0).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (V0.weight_decay, 0)
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    assert all("convolution" in names[id(p)] or names[id(p)] == "classifier.weight" for p in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_batches_are_a_new_permutation_each_epoch():
    first, second = (batch_indices(320, epoch, V0, seed=0) for epoch in (0, 1))
    assert first.shape == (2, 128)
    assert len(first.unique()) == 256
    assert not torch.equal(first, second)
    assert torch.equal(first, batch_indices(320, 0, V0, seed=0))


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


def test_operator_frequencies_of_v1():
    operators = draw_operators(100_000, V1, seeded())
    augmented = operators[operators >= 0]
    assert len(augmented) / len(operators) == pytest.approx(V1.augmented_share, abs=0.01)
    for index, probability in enumerate(V1.operator_probabilities):
        assert (augmented == index).float().mean().item() == pytest.approx(probability, abs=0.01)


def test_only_the_masked_part_is_perturbed_and_each_by_its_operator(pixels):
    recipe = replace(V0, augmented_share=0.5, checkerboard_epsilon=(0.05, 0.05))
    result = perturb(pixels, recipe, seeded(3))
    operators = draw_operators(len(pixels), recipe, seeded(3))
    assert set(operators.tolist()) == {-1, 0, 1, 2}
    expected = {-1: pixels, 1: decimate(pixels), 2: checkerboard(pixels, 0.05)}
    for index, operator in enumerate(operators.tolist()):
        if operator in expected:
            assert torch.equal(result[index], expected[operator][index])
        else:
            assert not torch.equal(result[index], pixels[index])


def test_uniform_noise_comes_before_the_operator_and_on_the_masked_part_alone(pixels):
    recipe = replace(V1, augmented_share=0.5, operator_probabilities=(0.0, 1.0, 0.0))
    result = perturb(pixels, recipe, seeded())
    operators = draw_operators(len(pixels), recipe, seeded())
    assert torch.equal(result[operators < 0], pixels[operators < 0])
    perturbed, original = result[operators >= 0], decimate(pixels)[operators >= 0]
    assert torch.equal(perturbed, decimate(perturbed))  # noise after decimation would break the 2x2 blocks
    assert 0.04 < (perturbed - original).abs().max() <= 0.05 + 1e-6


def test_two_steps_and_two_more_equal_four(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for arguments in (
        ("--output_dir", whole, "--max_steps", 4),
        ("--output_dir", parts, "--max_steps", 2),
        ("--output_dir", parts, "--max_steps", 4, "--resume"),
    ):
        done = launch("train_v0.py", *arguments)
        assert done.returncode == 0, done.stderr
    assert weights_sha256(parts) == weights_sha256(whole)
    record = json.loads((parts / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(asdict(V0)))
    assert record["dataset"]["sha256"] == load_split(str(SAMPLE), "train").fingerprint
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert not [line for line in (parts / "training.json").read_text().splitlines() if str(tmp_path) in line]
    assert (parts / "configuration_nula.py").is_file()


def test_two_processes_give_one_set_of_weights(tmp_path, tiny_folder):
    done = launch("finetune_v1.py", "--v0", tiny_folder, "--output_dir", tmp_path, "--max_steps", 4, processes=2)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["hardware"]["processes"] == 2
    assert record["initial_weights_sha256"] == weights_sha256(tiny_folder)
    assert len(record["epochs"]) == 2  # 320 images are two steps an epoch of 128 over both processes
    tuned, before = (NulaForImageClassification.from_pretrained(folder) for folder in (tmp_path, tiny_folder))
    changed = [not torch.equal(a, b) for a, b in zip(tuned.parameters(), before.parameters())]
    assert all(changed)  # nothing is frozen


def test_training_learns(tiny_model, train_split, tmp_path):
    recipe = replace(V0, cosine_epochs=11, restart_epochs=0, batch_size=32, learning_rate=1e-2, average_decay=0.9)
    _, epochs = train(tiny_model, recipe, train_split, Accelerator(cpu=True), tmp_path, seed=0)
    assert len(epochs) == 12
    assert epochs[-1]["loss"] < epochs[0]["loss"] - 0.2


def test_impossible_runs_are_refused(tiny_model, train_split, tmp_path):
    def attempt(recipe=V0, seed=0, **options):
        train(tiny_model, recipe, train_split, Accelerator(cpu=True), tmp_path, seed=seed, **options)

    with pytest.raises(ValueError, match="320 images are fewer than one batch of 512"):
        attempt(replace(V0, batch_size=512))
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        attempt(resume=True)
    attempt(max_steps=1)
    with pytest.raises(ValueError, match="another run than the checkpoint's: seed is 1, was 0"):
        attempt(seed=1, resume=True)
    with pytest.raises(ValueError, match=r"recipe is .*'name': 'v1'.*, was .*'name': 'v0'"):
        attempt(V1, resume=True)
    torch.nn.init.constant_(tiny_model.classifier.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss nan at step 0, learning rate 0\.000333"):
        attempt()


def test_other_data_sets_are_refused(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"needs columns img and label, has \['text'\]"):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_released_weights_come_from_the_recipe(version):
    record = json.loads((ROOT / "releases" / version / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(asdict({"v0": V0, "v1": V1}[version])))
    assert record["max_steps"] is None
    assert len(record["epochs"]) == {"v0": V0, "v1": V1}[version].epochs
    assert max(epoch["augmentation_share"] for epoch in record["epochs"]) <= 0.05
