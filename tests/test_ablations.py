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
    assert (ablations.FOLDER / "ABLATIONS.md").read_text() == ablations.render()
    for study, render in ((ablations.V0, ablations.render_v0), (ablations.V2, ablations.render_v2)):
        records = study.load_records()
        before, changed = render(records), list(records)[-1]
        clean = next(row for row in records[changed]["validation"] if row.startswith("Clean"))
        records[changed]["validation"][clean] = records[ablations.BASE]["validation"][clean]
        assert "\n".join(render(records)).count("| +0.00 |") == "\n".join(before).count("| +0.00 |") + 1


def changed_recipe(base: Recipe, study: ablations.Study, trial: ablations.Trial) -> dict:
    """The recipe of a trial, as JSON has it."""
    changes = assigned([*study.schedule, *trial.recipe], [field.name for field in fields(Recipe)], "--recipe")
    return json.loads(json.dumps(asdict(replace(base, **changes))))


def test_every_record_of_v0_is_of_its_trial():
    study, records = ablations.V0, ablations.V0.load_records()
    for name, record in records.items():
        trial = study.trials[name]
        recipe = changed_recipe(BASE, study, trial)
        assert record["recipe"] == {field: recipe[field] for field in record["recipe"]}, name
        assert record["architecture"] == {field: json.loads(v) for field, v in {**study.net, **trial.net}.items()}, name
        assert record["dataset"]["images"] == 50_000 - ablations.VALIDATION_IMAGES
        assert record["hardware"]["processes"] == trial.processes
        assert record["hardware"]["mixed_precision"] == (trial.mixed_precision or study.mixed_precision)
        assert record["seed"] == trial.seed
        assert record["max_steps"] is None
        assert len(record["epochs"]) == 2
        changed = {part.partition("=")[0] for part in trial.recipe} & {"batch_size", "augmented_share"}
        if not changed and (trial.seed, trial.processes) == (0, 1):  # else other images are drawn
            assert record["epochs"][0]["operators"] == records[ablations.BASE]["epochs"][0]["operators"], name


def test_every_record_of_v2_is_of_its_trial():
    study, records = ablations.V2, ablations.V2.load_records()
    base = records[ablations.BASE]
    frozen = Recipe(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in base["recipe"].items()}
    )
    for name, record in records.items():
        trial = study.trials[name]
        assert record["recipe"] == changed_recipe(frozen, study, trial), name
        net = {field: json.loads(value) if value[0] in "[0123456789n" else value for field, value in trial.net.items()}
        assert record["architecture"] == base["architecture"] | net, name
        assert record["dataset"] == base["dataset"]
        assert record["held_out"] == base["held_out"]
        assert record["held_out"]["images"] == ablations.VALIDATION_IMAGES
        assert record["hardware"]["mixed_precision"] == study.mixed_precision
        assert (record["seed"], record["max_steps"]) == (trial.seed, None)
        assert len(record["epochs"]) == len(base["epochs"])


def test_the_single_cycle_differs_from_v0_in_restarts_and_dropout_alone():
    record = json.loads((ablations.RESULTS / "single-cycle.json").read_text())
    recipe = json.loads(json.dumps(asdict(replace(BASE, cosine_epochs=27))))
    assert record["recipe"] == {field: recipe[field] for field in record["recipe"]}
    assert {field for field in recipe if field.startswith("restart")} <= recipe.keys() - record["recipe"].keys()
    net = NulaConfig(stem_dropout=0.35)
    assert record["architecture"] == {field: getattr(net, field) for field in record["architecture"]}
    assert len(record["epochs"]) == BASE.epochs
    assert list(record["test"]) == [row.name for row in ROWS]
