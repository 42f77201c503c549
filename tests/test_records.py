"""What the files of a release say, and what is said where they are wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from nula.records.release import Release, drawn_from, load_releases, named, pairs
from nula.records.table import Table

SETTINGS = {
    "name": "a",
    "parent": None,
    "hub_id": "owner/net-a",
    "published": None,
    "summary": "a is trained from scratch.",
    "color": "#123ABC",
    "script": "train/a.py",
    "recipe": {"batch_size": 8},
}


def write(root: Path, name: str = "a", **changes: object) -> Path:
    """A folder that holds a release.json."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "release.json").write_text(json.dumps(SETTINGS | {"name": name} | changes))
    return folder


def test_the_committed_releases_are_read(releases):
    assert list(releases) == ["v0", "v1"]
    v1 = releases["v1"]
    assert (v1.parent, v1.repository, v1.published) == ("v0", "nula-cifar10-robust-v1", "published_v1")
    assert v1.weights_sha256 == v1.training["weights_sha256"] == v1.results.table().provenance["weights_sha256"]
    assert [training.record["seed"] for training in v1.trainings] == [0, 1]
    assert v1.results.record("made up") is None
    assert v1.results.table("made up") is None
    assert pairs(releases) == [(releases["v0"], v1)]
    assert drawn_from(releases) == f"{releases['v0'].weights_sha256} {v1.weights_sha256}"


def test_results_are_read_once(releases):
    results = load_releases(ROOT / "releases")["v0"].results
    assert results.table() is results.table()
    assert results.record("calibration") is results.record("calibration")
    assert results.golden is results.golden


def test_a_release_is_written_as_it_is_read(tmp_path):
    release = Release.load(write(tmp_path))
    (tmp_path / "a" / "release.json").unlink()
    release.save()
    assert json.loads((tmp_path / "a" / "release.json").read_text()) == SETTINGS
    assert Release.load(tmp_path / "a") == release


def test_parents_come_first(tmp_path):
    write(tmp_path, "a", parent="c")
    write(tmp_path, "b", parent="a")
    write(tmp_path, "c")
    releases = load_releases(tmp_path)
    assert list(releases) == ["c", "a", "b"]
    assert [(base.name, tuned.name) for base, tuned in pairs(releases)] == [("c", "a"), ("a", "b")]
    assert pairs({"b": releases["b"]}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is '', must be a text"),
        ({"hub_id": None}, "hub_id is None, must be a text"),
        ({"summary": 3}, "summary is 3, must be a text"),
        ({"script": []}, r"script is \[\], must be a text"),
        ({"parent": 1}, "parent is 1, must be a text or null"),
        ({"published": False}, "published is False, must be a text or null"),
        ({"color": "blue"}, "color is 'blue', must be #RRGGBB"),
        ({"color": "#12345g"}, "color is '#12345g', must be #RRGGBB"),
        ({"recipe": None}, "recipe is None, must be an object of settings"),
        ({"colour": "#123456"}, r"missing \[\], unknown \['colour'\]"),
    ],
)
def test_an_impossible_field_is_named(changes, message, tmp_path):
    folder = write(tmp_path)
    (folder / "release.json").write_text(json.dumps(SETTINGS | changes))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder / 'release.json'))}: .*{message}"):
        Release.load(folder)


@pytest.mark.parametrize("field", SETTINGS)
def test_a_missing_field_is_named(field, tmp_path):
    folder = write(tmp_path)
    content = {name: value for name, value in SETTINGS.items() if name != field}
    (folder / "release.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"missing \['{field}'\], unknown \[\]"):
        Release.load(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "must be an object, is")])
def test_what_is_no_object_is_refused(text, message, tmp_path):
    folder = write(tmp_path)
    (folder / "release.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_releases(tmp_path)


def test_a_folder_without_releases_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no release"):
        load_releases(tmp_path)
    with pytest.raises(FileNotFoundError):
        Release.load(tmp_path)


def test_a_release_must_be_called_as_its_folder(tmp_path):
    write(tmp_path, "a").rename(tmp_path / "b")
    with pytest.raises(ValueError, match="name is 'a', must be that of its folder, 'b'"):
        load_releases(tmp_path)


@pytest.mark.parametrize("parent", ["nobody", "b", "a"])
def test_a_parent_must_be_there_and_no_descendant(parent, tmp_path):
    write(tmp_path, "a", parent=parent)
    write(tmp_path, "b", parent="a")
    with pytest.raises(ValueError, match=f"parent is '{parent}', must be null or another release .*there are a, b"):
        load_releases(tmp_path)


def test_an_unknown_name_is_told_with_those_there_are(releases):
    assert named(releases, "v1") is releases["v1"]
    with pytest.raises(ValueError, match="there is no release 'v9'; there are v0, v1"):
        named(releases, "v9")


@pytest.fixture
def table() -> Table:
    """Three images under "clean", and under two realisations of "noise", stored the later one first."""
    predictions = np.array([[0, 1, 2], [0, 0, 0], [0, 1, 0]], np.uint8)
    labels = np.array([0, 1, 2], np.uint8)
    rows = ("clean", "noise", "noise")
    return Table(rows=rows, seeds=(0, 7, 3), predictions=predictions, labels=labels, provenance={})


def test_a_row_is_found_by_its_name(table):
    row = table.row("clean")
    assert (row.name, row.seed, row.accuracy) == ("clean", 0, 100.0)
    assert row.right.tolist() == [True] * 3
    assert row.interval() == pytest.approx((43.85, 100.0), abs=0.005)  # n / (n + z²), z = 1.96
    assert [(row.seed, round(row.accuracy)) for row in table.realisations("noise")] == [(3, 67), (7, 33)]
    assert table.realisations("clean")[0].predictions.tolist() == [0, 1, 2]


def test_a_name_that_no_row_or_several_have_is_refused(table):
    with pytest.raises(ValueError, match="the table has no row 'fog'; its rows are clean, noise"):
        table.row("fog")
    with pytest.raises(ValueError, match="measures 'noise' 2 times"):
        table.row("noise")
    with pytest.raises(ValueError, match="no row 'fog'"):
        table.realisations("fog")
    with pytest.raises(ValueError, match="measures 'noise' 2 times"):
        table.accuracies()


def test_classes_are_those_of_the_data(table):
    assert table.classes[:2] == ("airplane", "automobile")
    table.provenance["dataset"] = {"classes": ["x", "y", "z"]}
    assert table.classes == ("x", "y", "z")
