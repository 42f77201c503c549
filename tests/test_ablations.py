"""The committed trials are what the table of trials says."""

import json
from dataclasses import asdict, fields, replace

from nula.train import ablations
from nula.train.launch import changes
from nula.train.recipe import V0


def test_the_table_is_what_the_records_give():
    committed = (ablations.FOLDER / "ABLATIONS.md").read_text()
    records = ablations.load_records()
    assert committed == ablations.render(records)
    records["adamw"]["validation"]["Clean (CIFAR-10 Test)"] = records["base"]["validation"]["Clean (CIFAR-10 Test)"]
    assert ablations.render(records).count("| +0.00 |") > committed.count("| +0.00 |")


def test_every_trial_is_compared_with_the_one_it_names():
    records = ablations.load_records()
    for name, trial in ablations.TRIALS.items():
        if trial.against:
            alike = records | {name: records[name] | {"validation": records[trial.against]["validation"]}}
            zeros = " | ".join(["+0.00"] * len(ablations.SHOWN))
            assert f"| {name} | {trial.change} | {trial.against} | {zeros} |" in ablations.render(alike)
            drawn = [json.dumps(records[key]["epochs"][0]["operators"]) for key in (name, trial.against)]
            changed = {"batch_size", "augmented_share"} & {part.partition("=")[0] for part in trial.recipe}
            assert drawn[0] == drawn[1] or changed or trial.processes > 1, name


def test_every_record_is_of_its_trial():
    for name, record in ablations.load_records().items():
        trial = ablations.TRIALS[name]
        assignments = [*ablations.SCHEDULE, *trial.recipe]
        recipe = asdict(replace(V0, **changes(assignments, [field.name for field in fields(V0)], "--recipe")))
        for field in fields(V0):
            if not field.name.startswith("restart"):  # there was none
                assert record["recipe"][field.name] == json.loads(json.dumps(recipe[field.name])), (name, field.name)
        net = {field: json.loads(str(getattr(trial, field))) for field in ablations.ARCHITECTURE}
        assert {field: record["architecture"][field] for field in net} == net
        assert record["dataset"]["images"] == 50_000 - ablations.VALIDATION_IMAGES
        assert record["hardware"]["processes"] == trial.processes
        assert record["hardware"]["mixed_precision"] == trial.mixed_precision
        assert record["max_steps"] is None
        assert len(record["epochs"]) == 2
