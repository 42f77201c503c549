"""The committed trials are what the table of trials says."""

import json
from dataclasses import asdict, fields, replace

from test_training import frozen_recipe

from nula.configuration_nula import NulaConfig
from nula.perturbations.suite import ROWS
from nula.runtime.arguments import assigned
from nula.train import ablations
from nula.train.recipe import Recipe

BASE = frozen_recipe("v0")  # what the trials change


def test_the_table_is_what_the_records_give():
    committed = (ablations.FOLDER / "ABLATIONS.md").read_text()
    records = ablations.load_records()
    assert committed == ablations.render(records)
    records["adamw"]["validation"]["Clean (CIFAR-10 Test)"] = records["base"]["validation"]["Clean (CIFAR-10 Test)"]
    assert ablations.render(records).count("| +0.00 |") > committed.count("| +0.00 |")


def test_every_record_is_of_its_trial():
    records = ablations.load_records()
    for name, record in records.items():
        trial = ablations.TRIALS[name]
        assignments = [*ablations.SCHEDULE, *trial.recipe]
        changes = assigned(assignments, [field.name for field in fields(Recipe)], "--recipe")
        recipe = asdict(replace(BASE, **changes))
        assert record["recipe"] == json.loads(json.dumps(recipe)), name
        net = {field: json.loads(str(getattr(trial, field))) for field in ablations.ARCHITECTURE}
        assert record["architecture"] == net, name
        assert record["dataset"]["images"] == 50_000 - ablations.VALIDATION_IMAGES
        assert record["hardware"]["processes"] == trial.processes
        assert record["hardware"]["mixed_precision"] == trial.mixed_precision
        assert record["seed"] == trial.seed
        assert record["max_steps"] is None
        assert len(record["epochs"]) == 2
        changed = {part.partition("=")[0] for part in trial.recipe} & {"batch_size", "augmented_share"}
        if not changed and (trial.seed, trial.processes) == (0, 1):  # else other images are drawn
            assert record["epochs"][0]["operators"] == records[ablations.BASE]["epochs"][0]["operators"], name


def test_the_single_cycle_differs_from_v0_in_restarts_and_dropout_alone():
    record = json.loads((ablations.RESULTS / "single-cycle.json").read_text())
    recipe = json.loads(json.dumps(asdict(replace(BASE, cosine_epochs=27))))
    assert record["recipe"] == {field: value for field, value in recipe.items() if not field.startswith("restart")}
    net = NulaConfig(stem_dropout=0.35)
    assert record["architecture"] == {field: getattr(net, field) for field in ablations.ARCHITECTURE}
    assert len(record["epochs"]) == BASE.epochs
    assert list(record["test"]) == [row.name for row in ROWS]
