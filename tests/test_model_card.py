"""Tables, limits and pictures from result files that were made up, so that what they must show is known."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nula.data import Split
from nula.evaluation.studies.basin import ALPHAS, INTERPOLATED, MEASURED_ANEW, PATH_CONDITIONS, path_row
from nula.model_card import figures, tables
from nula.model_card.figures import PICTURES
from nula.model_card.limits import limits
from nula.model_card.mix import mix_sentences
from nula.perturbations.corruptions import CORRUPTIONS, SEVERITIES
from nula.perturbations.suite import ROWS, Perturbation
from nula.records.cifar10 import CIFAR10_FINGERPRINTS
from nula.records.release import Release, Results
from nula.records.table import Table
from nula.train.recipe import V0, V2

IMAGES, CLASSES = 400, 10
CIFAR10 = {"dataset": {"name": "cifar10", "split": "test", "sha256": CIFAR10_FINGERPRINTS["test"]}}
ORIGIN = CIFAR10 | {"definitions_version": 0}
COLORS = {"base": "#111111", "tuned": "#222222", "third": "#333333"}


def save(folder: Path, rows: list[tuple[str, int]], right: np.ndarray) -> None:
    """A table whose answers are right where `right` (R, N) says so, and else the next class."""
    labels = (np.arange(right.shape[1]) % CLASSES).astype(np.uint8)
    names, seeds = zip(*rows)
    predictions = np.where(right, labels, (labels + 1) % CLASSES).astype(np.uint8)
    Table(rows=names, seeds=seeds, predictions=predictions, labels=labels, provenance=ORIGIN).save(folder)


def measure(folder: Path, clean: int, noisy: int, norm: float = 2.0) -> None:
    """Results of every study; the first `clean` or `noisy` images are right in each row and realisation."""
    save(folder, [(row.name, 0) for row in ROWS], np.tile(np.arange(IMAGES) < clean, (len(ROWS), 1)))
    draws = [("Gaussian Noise σ = 0.05", draw) for draw in range(5)] + [("Gaussian Noise σ = 0.1", 0)]
    save(folder / "noise", draws, np.tile(np.arange(IMAGES) < noisy, (len(draws), 1)))
    line = [path_row(c, s, alpha) for c in PATH_CONDITIONS for s in (INTERPOLATED, MEASURED_ANEW) for alpha in ALPHAS]
    on_line = np.arange(IMAGES) < np.arange(200, 200 + len(line))[:, None]
    save(folder / "basin", [(row, 0) for row in line], on_line)
    norms = {sigma: [norm, 2 * norm, 3 * norm] for sigma in ("0.0", "0.1")}
    (folder / "sensitivity.json").write_text(json.dumps({"norms": norms}))
    ends = [{"lanczos": {"smallest": -size, "largest": size / 10}} for size in (8, 9, 10, 11)]
    (folder / "curvature.json").write_text(json.dumps({"eigenvalues": {"0.0": ends, "0.1": ends}}))
    found = {"labels": [3, None, 5, 1], "bounds": [0.9, 0.4, 0.8, 0.7], "radii": [0.2, 0.0, 0.1, 0.05]}
    (folder / "certified.json").write_text(json.dumps({"truth": [3, 2, 5, 0], "certificates": {"0.1": found}}))


def release(root: Path, name: str, parent: str | None = None, published: str | None = None) -> Release:
    """A release of these results; nothing else of it is there."""
    folder = root / name
    settings = {"summary": "A net.", "script": "train.py", "recipe": {}, "hub_id": f"owner/{name}"}
    results, color = Results(folder / "results"), COLORS[name]
    return Release(
        name=name, folder=folder, results=results, parent=parent, published=published, color=color, **settings
    )


@pytest.fixture
def made_up(tmp_path) -> dict[str, Release]:
    measure(tmp_path / "base" / "results", clean=360, noisy=280)
    measure(tmp_path / "tuned" / "results", clean=362, noisy=300, norm=1.0)
    base, tuned = release(tmp_path, "base"), release(tmp_path, "tuned", parent="base")
    return {"base": base, "tuned": tuned}


@pytest.fixture
def with_third(made_up, tmp_path) -> dict[str, Release]:
    """Another release, fine-tuned from the second one, of which nothing but the table was measured."""
    save(tmp_path / "third" / "results", [(row.name, 0) for row in ROWS], np.tile(np.arange(IMAGES) < 100, (20, 1)))
    return made_up | {"third": release(tmp_path, "third", parent="tuned")}


@pytest.fixture
def data(test_split) -> Split:
    """Images that count as those that were measured."""
    labels = np.arange(IMAGES) % CLASSES
    return Split(test_split.images.repeat(2, 1, 1, 1), labels, test_split.names, CIFAR10_FINGERPRINTS["test"])


def picture(name: str, releases: dict[str, Release], data: Split | None = None) -> Figure | None:
    [draw] = [picture.draw for picture in PICTURES if picture.name == name]
    return draw(releases, data)


@pytest.mark.parametrize("name", [picture.name for picture in PICTURES])
def test_every_picture_can_be_drawn(name, made_up, with_third, data, tmp_path):
    for releases in (made_up, with_third, {"base": made_up["base"]}):
        figure = picture(name, releases, data)
        if len(releases) == 1 and name in ("running_gap", "path", "flipped"):
            assert figure is None  # there is no pair
            continue
        assert isinstance(figure, Figure)
        assert all(axes.has_data() for axes in figure.axes)
        figure.savefig(tmp_path / "figure.png")


def test_what_no_release_has_measured_is_not_drawn(made_up, data, tmp_path):
    nothing = {name: replace(one, results=Results(tmp_path / "nothing")) for name, one in made_up.items()}
    drawn = [picture.name for picture in PICTURES if picture.draw(nothing, data) is not None]
    assert drawn == ["perturbations"]


def test_pictures_show_the_results(made_up):
    containers = picture("table", made_up).axes[0].containers
    assert [line.lines[0].get_xydata()[0, 0] for line in containers] == pytest.approx([90.0, 90.5])
    assert [to_hex(line.lines[0].get_color()) for line in containers] == ["#111111", "#222222"]
    *lines, mean = picture("running_gap", made_up).axes[0].lines
    assert [curve.get_ydata()[-1] for curve in lines] == pytest.approx([5.0] * 5)
    assert mean.get_ydata()[0] == pytest.approx(5.0)
    medians = picture("sensitivity", made_up).axes[0].containers[1].lines[0].get_ydata()
    assert medians.tolist() == pytest.approx([2.0, 2.0])
    ends = [container.lines[0].get_ydata() for container in picture("curvature", made_up).axes[0].containers]
    assert [np.sign(values).tolist() for values in ends] == [[1, 1], [-1, -1]] * 2  # largest, smallest, of both
    clean_path = picture("path", made_up).axes[0].lines[0]
    at_one = ALPHAS.index(1.0)
    assert clean_path.get_xydata()[at_one].tolist() == [1.0, 100 * (200 + at_one) / IMAGES]
    histogram = picture("noise_histogram", made_up).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in histogram] == ["base: 70.00 ± 0.00 %", "tuned: 75.00 ± 0.00 %"]
    sweep = picture("noise_sweep", made_up).axes[0].containers[0].lines[0].get_xydata()
    assert sweep.tolist() == [[0.05, 70.0], [0.1, 70.0]]


def test_a_third_release_stands_beside_the_others(with_third):
    containers = picture("table", with_third).axes[0].containers
    assert [line.lines[0].get_xydata()[0, 0] for line in containers] == pytest.approx([90.0, 90.5, 25.0])
    assert [line.get_label() for line in containers] == ["base", "tuned", "third"]
    assert [axes.get_title() for axes in picture("confusion", with_third).axes] == [
        f"{name}, noise σ = 0.05" for name in ("base", "tuned", "third")
    ]
    assert len(picture("sensitivity", with_third).axes[0].containers) == 2
    assert picture("running_gap", with_third).axes[0].get_ylabel() == "tuned − base in points"


def test_the_certified_curve_counts_what_is_right_and_certified_that_far(made_up):
    curve, _ = picture("certified", made_up).axes[0].lines
    assert curve.get_drawstyle() == "steps-post"
    assert curve.get_xydata().tolist() == [[0, 50], [0.1, 25], [0.2, 0]]


def test_flipped_images_are_those_that_were_measured(made_up, data, test_split):
    figure = picture("flipped", made_up, data)
    titles = [axes.get_title() for axes in figure.axes]
    # The two images that base alone gets wrong: 360 is an airplane, 361 an automobile.
    assert titles == ["airplane\nbase: automobile, tuned: airplane", "automobile\nbase: bird, tuned: automobile"]
    with pytest.raises(ValueError, match="the results of base are of other images"):
        picture("flipped", made_up, test_split)


def test_names_and_captions_of_pictures_are_of_their_own():
    assert (
        len({picture.name for picture in PICTURES}) == len({picture.caption for picture in PICTURES}) == len(PICTURES)
    )


@pytest.fixture
def swapped(monkeypatch) -> None:
    """The rows of the suite in another order, in which no measured table has them."""
    other = (*reversed(ROWS[:7]), *ROWS[7:])
    monkeypatch.setattr(tables, "ROWS", other)
    monkeypatch.setattr(figures, "ROWS", other)


def test_figures_stand_beside_their_own_row_in_whatever_order(releases, swapped):
    before = Path(__file__).parents[1].joinpath("docs", "results.md").read_text().splitlines()
    shown = tables.results_table(releases).splitlines()
    assert shown[2].startswith("| Decimate (x2 Factor) | 89.06")
    assert set(shown) <= set(before)
    for text in (tables.definitions_table(), tables.calibration_table(releases), tables.seeds_table(releases["v1"])):
        names = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
        assert names == [row.name for row in tables.ROWS]
    card = Path(__file__).parents[1].joinpath("releases", "v1.md").read_text().splitlines()
    assert set(tables.calibration_table(releases).splitlines()) <= set(card)
    assert set(tables.seeds_table(releases["v1"]).splitlines()) <= set(card)


def test_a_perturbation_is_added_by_its_row_in_the_suite(releases, tmp_path, monkeypatch, test_split):
    """Where it was not measured nothing changes; where it was, it has no published figure."""
    before = tables.results_table(releases)
    negative = Perturbation("Negative", "1 − x", lambda pixels, generator: 1 - pixels)
    for module in (tables, figures):
        monkeypatch.setattr(module, "ROWS", (*ROWS, negative))
    assert tables.results_table(releases) == before
    assert tables.definitions_table().endswith("\n| Negative | 1 − x |")
    assert sum(axes.has_data() for axes in picture("perturbations", releases, test_split).axes) == 21

    def with_negative(one: Release) -> Release:
        table = one.results.table()
        wrong = (table.labels[None] + 1) % 10
        added = {"rows": (*table.rows, "Negative"), "seeds": (*table.seeds, 0)}
        replace(table, **added, predictions=np.concatenate([table.predictions, wrong])).save(tmp_path / one.name)
        return replace(one, results=Results(tmp_path / one.name))

    lines = tables.results_table({name: with_negative(one) for name, one in releases.items()}).splitlines()
    assert lines[:-1] == before.splitlines()
    cells = [cell.strip("* ").partition("<br>")[0].strip("*") for cell in lines[-1].strip("|").split("|")]
    assert cells == ["Negative", "0.00", "–", "0.00", "–", "+0.00"]


def test_stored_rows_may_come_in_whatever_order(releases, tmp_path):
    """Two measured rows change places, in the tables of both releases."""

    def reordered(one: Release) -> Release:
        table, order = one.results.table(), [1, 0, *range(2, len(ROWS))]
        folder = shutil.copytree(one.results.folder, tmp_path / one.name)
        rows = tuple(table.rows[index] for index in order)
        replace(table, rows=rows, predictions=table.predictions[order]).save(folder)
        return replace(one, results=Results(folder))

    others = {name: reordered(one) for name, one in releases.items()}
    assert tables.results_table(others) == tables.results_table(releases)
    assert limits(others["v1"].results) == limits(releases["v1"].results)
    first, second = (picture("confusion", found).axes[1].images[0].get_array() for found in (releases, others))
    assert np.array_equal(first, second)
    first, second = (picture("table", found).axes[0] for found in (releases, others))
    labels = [[text.get_text() for text in axes.get_yticklabels()] for axes in (first, second)]
    assert labels[0] != labels[1]
    for before, after in zip(first.containers, second.containers):
        values = [container.lines[0].get_xdata() for container in (before, after)]
        assert dict(zip(labels[0], values[0])) == dict(zip(labels[1], values[1]))


def test_tables_of_studies(tmp_path):
    """Made-up results whose means are known."""
    labels = np.zeros(4, np.uint8)
    releases = {}
    for name, right in (("base", 1), ("tuned", 3)):
        results = tmp_path / name / "results"
        rows = tuple(f"{corruption} {severity}" for corruption in CORRUPTIONS for severity in SEVERITIES)
        predictions = np.ones((len(rows), 4), np.uint8)
        predictions[:, :right] = 0
        predictions[1] = 0  # every image at the first corruption's second severity
        common = {"labels": labels, "provenance": ORIGIN}
        Table(rows=rows, seeds=(0,) * len(rows), predictions=predictions, **common).save(results / "corruptions")
        attacks = Table(rows=("clean", "box ε = 2/255"), seeds=(0, 0), predictions=predictions[:2], **common)
        attacks.save(results / "null_space")
        scores = {"expected_calibration_error": 0.25, "negative_log_likelihood": right, "brier_score": 0.125}
        (results / "calibration.json").write_text(json.dumps({"rows": {row.name: scores for row in ROWS}}))
        releases[name] = release(tmp_path, name)
    corruptions = tables.corruptions_table(releases).splitlines()
    # One image is always right and three in one severity of five; the other way about for the second release.
    assert corruptions[2] == (
        "| gaussian noise | 40.00<br><sub>-23.65 to 103.65</sub> | 80.00<br><sub>16.35 to 143.65</sub> |"
    )
    means = [cell.partition("<")[0].strip() for cell in corruptions[-1].strip("|").split("|")]
    assert means == ["mean", f"{25 + 15 / 14:.2f}", f"{75 + 5 / 14:.2f}"]
    assert len(corruptions) == 2 + len(CORRUPTIONS) + 1
    attacks = tables.attacks_table(releases).splitlines()
    assert attacks[0] == "| attack on 4 images | base | tuned |"
    assert attacks[2].startswith("| clean | 25.00<br><sub>4.56 to 69.94</sub> | 75.00<br><sub>30.06 to 95.44</sub> |")
    assert attacks[3].startswith("| box ε = 2/255 | 100.00<br><sub>51.01 to 100.00</sub> |")
    assert tables.calibration_table(releases).splitlines()[2] == (
        "| Clean (CIFAR-10 Test) | 0.250 | 0.250 | 1.000 | 3.000 | 0.125 | 0.125 |"
    )
    studies = (tables.corruptions_table, tables.attacks_table, tables.calibration_table)
    unmeasured = release(tmp_path, "third", parent="base")
    for table in studies:
        head = table({"base": releases["base"], "third": unmeasured}).splitlines()[0]
        assert " base |" in head
        assert "third" not in head
    assert [table({"third": unmeasured}) for table in studies] == [None] * 3


@pytest.mark.parametrize("field", ["dataset", "definitions_version", "labels"])
def test_tables_of_other_images_or_definitions_are_not_set_side_by_side(field, made_up):
    stored = made_up["tuned"].results.table()
    if field == "labels":
        stored.labels[0] = 5
    else:
        stored.provenance[field] = {"sha256": "other"} if field == "dataset" else 1
    with pytest.raises(ValueError, match="not of the same rows, seeds and images, by the same definitions"):
        tables.results_table(made_up)


def test_a_published_column_that_is_not_there_is_named(made_up):
    with pytest.raises(ValueError, match="has no column 'published_v9'; it has published_v0, published_v1"):
        tables.published("published_v9")
    releases = made_up | {"base": replace(made_up["base"], published="published_v0")}
    assert tables.results_table(releases).splitlines()[0] == (
        "| perturbation | base | published base | tuned | tuned − base |"
    )


def test_limits_without_a_table_or_without_errors(made_up, tmp_path):
    with pytest.raises(ValueError, match="holds no table of the twenty rows"):
        limits(Results(tmp_path / "nothing"))
    table = made_up["base"].results.table()
    table.predictions[:] = table.labels
    assert "There is no error." in limits(made_up["base"].results)[1]


def test_a_card_tells_the_whole_mix_and_nothing_that_was_not_in_use():
    assert mix_sentences(asdict(V0)) == mix_sentences({}) == ""
    told = mix_sentences(asdict(V2))
    for word in ("AugMix", "mixture of its channels", "σ from", "impulse", "gray square", "principal components"):
        assert word in told
    assert "Jensen-Shannon" not in told
    assert "2 such augmentations" in mix_sentences(asdict(replace(V2, views=2, consistency_weight=4.0)))
    calm = {
        "noise_sparse_share": 0.0,
        "augmix_share": 0.0,
        "channel_mixing_probability": 0.0,
        "cutout_probability": 0.0,
    }
    assert not re.search("impulse|AugMix|mixture|square", mix_sentences(asdict(replace(V2, **calm))))
