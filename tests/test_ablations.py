"""The committed trials are what the table of trials says."""

import json
from dataclasses import asdict, replace

from nula.train import ablations
from nula.train.launch import changes
from nula.train.recipe import V0


def test_the_table_is_what_the_records_give():
    committed = (ablations.FOLDER / "ABLATIONS.md").read_text()
    records = ablations.load_records()
    assert committed == ablations.render(records)
    records["adamw"]["validation"]["Clean (CIFAR-10 Test)"] = records["base"]["validation"]["Clean (CIFAR-10 Test)"]
    assert ablations.render(records).count("| +0.00 |") > committed.count("| +0.00 |")


def test_every_record_is_of_its_trial():
    for name, record in ablations.load_records().items():
        trial = ablations.TRIALS[name]
        expected = asdict(replace(V0, **changes([*ablations.START, *trial.recipe], list(record["recipe"]), "--recipe")))
        assert {field: record["recipe"][field] for field in expected} == json.loads(json.dumps(expected))
        assert record["dataset"]["images"] == 50_000 - ablations.VALIDATION_IMAGES
        assert record["hardware"]["processes"] == 1
        assert f"hidden_sizes={trial.hidden_sizes}" in record["command"]
        assert f"depths={trial.depths}" in record["command"]
        assert record["max_steps"] is None
