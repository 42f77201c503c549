"""The committed trials are what the table of trials says."""

import json
from dataclasses import asdict, fields, replace

import pytest
from test_training import frozen_recipe

from nula.configuration_nula import NulaConfig
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from nula.perturbations.suite import ROWS
from nula.runtime.arguments import assigned
from nula.train import ablations
from nula.train.recipe import Recipe

BASE = frozen_recipe("v0")  # what the trials change


def test_the_table_is_what_the_records_give():
    assert (ablations.FOLDER / "ABLATIONS.md").read_text() == ablations.render()
    for study, render in zip(ablations.STUDIES, (ablations.render_v0, ablations.render_v2, ablations.render_v2_long)):
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


@pytest.mark.parametrize("study", [ablations.V2, ablations.V2_LONG], ids=lambda study: study.folder.name)
def test_every_record_of_v2_is_of_its_trial(study):
    records = study.load_records()
    base = records[ablations.BASE]
    frozen = Recipe(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in base["recipe"].items()}
    )
    for name, record in records.items():
        trial = study.trials[name]
        recipe = changed_recipe(frozen, study, trial)
        assert record["recipe"] == recipe, name
        net = {field: as_json(value) for field, value in trial.net.items()}
        assert net.items() <= record["architecture"].items(), name
        shared = base["architecture"].keys() & record["architecture"].keys()  # settings came and went
        assert {field: base["architecture"][field] for field in shared} | net == {
            field: record["architecture"][field] for field in shared | net.keys()
        }, name
        assert record["dataset"] == base["dataset"]
        assert record["held_out"] == base["held_out"]
        assert record["held_out"]["images"] == ablations.VALIDATION_IMAGES
        assert record["hardware"]["mixed_precision"] == study.mixed_precision
        assert (record["seed"], record["max_steps"]) == (trial.seed, None)
        assert len(record["epochs"]) == recipe["warmup_epochs"] + recipe["cosine_epochs"]


@pytest.mark.parametrize("study", [ablations.V2, ablations.V2_LONG], ids=lambda study: study.folder.name)
def test_the_corruptions_were_measured_on_the_trials_own_nets(study):
    records, tables = study.load_records(), study.load_corrupted()
    assert len(tables) >= 4
    for name, table in tables.items():
        assert table.provenance["weights_sha256"] == records[name]["weights_sha256"], name
        assert table.provenance["dataset"]["split"] == study.corrupted_split
        assert table.is_comparable(tables[ablations.BASE])
        assert len(table.rows) == len(CORRUPTIONS) * len(SEVERITIES)


def as_json(value: str) -> object:
    """The value of an option, as JSON has it."""
    return json.loads(value) if value[0] in "[0123456789" or value in ("null", "true", "false") else value


def test_the_single_cycle_differs_from_v0_in_restarts_and_dropout_alone():
    record = json.loads((ablations.RESULTS / "single-cycle.json").read_text())
    recipe = json.loads(json.dumps(asdict(replace(BASE, cosine_epochs=27))))
    assert record["recipe"] == {field: recipe[field] for field in record["recipe"]}
    assert {field for field in recipe if field.startswith("restart")} <= recipe.keys() - record["recipe"].keys()
    net = NulaConfig(stem_dropout=0.35)
    assert record["architecture"] == {field: getattr(net, field) for field in record["architecture"]}
    assert len(record["epochs"]) == BASE.epochs
    assert list(record["test"]) == [row.name for row in ROWS]
