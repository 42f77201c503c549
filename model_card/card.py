"""The model cards, from the results of the releases alone.

`nula card` rewrites releases/NAME.md for each release, and what stands between markers in README.md and docs/.
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import version as package_version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from scipy.special import softmax

from nula.evaluation.claims import Finding, findings
from nula.evaluation.null_space import STEPS
from nula.model_card.figures import PICTURES
from nula.model_card.limits import limits
from nula.model_card.mix import mix_sentences
from nula.model_card.pages import with_tables
from nula.model_card.tables import (
    all_on_cifar10,
    attacks_table,
    calibration_table,
    compared_pair,
    corruptions_table,
    definitions_table,
    published_beside,
    published_pair,
    results_table,
    seeds_table,
    summary_table,
    training_pflop,
    training_speed,
)
from nula.perturbations.corruptions import SEVERITIES
from nula.records.cifar10 import CIFAR10, is_cifar10
from nula.records.provenance import training_command, without_options
from nula.records.release import LOCAL, Release, Releases, drawn_from, load_releases, named, weights_behind
from nula.records.statistics import BINS
from nula.records.table import Table, row_title

MAIN_PICTURE = "table"  # stands with the first results; the others are folded
WIDGET_CLASSES = 3  # examples in the widget, each of another class
PARENT_OPTION = "--v0"  # of a script that fine-tunes, where training.json is from before it named the option
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def release_tag() -> str:
    """Return the tag that a release of this version of the package is pushed under."""
    return f"v{package_version('nula')}"


def pictures(releases: Releases) -> dict[Path, str]:
    """Return the pictures that were drawn for these very weights, with their captions."""
    folders = {release.folder.parent for release in releases.values()}
    if len(folders) != 1:  # a run and the release that it started from
        return {}
    folder, pair = folders.pop() / "figures", compared_pair(releases)
    names = dict(zip(("base", "tuned"), (release.name for release in pair or ())))
    files = {folder / f"{picture.name}.png": picture.caption for picture in PICTURES}
    found = {file: caption for file, caption in files.items() if file.is_file()}
    expected = drawn_from(releases) if found else ""
    return {file: caption.format(**names) for file, caption in found.items() if weights_behind(file) == expected}


def widget_images(release: Release) -> dict[str, int]:
    """Return the path in the repository of the first golden image of each of three classes, and the image's index."""
    table, (images, _) = _table(release), release.results.golden
    classes, first = np.unique(table.labels[: len(images)], return_index=True)
    found: dict[str, int] = {}
    for place in np.argsort(first)[:WIDGET_CLASSES]:
        name = re.sub(r"[^\w-]+", "_", table.classes[classes[place]])
        path = f"examples/{name}.png"
        if path in found:  # of a class whose name differs in nothing but other characters
            path = f"examples/{name}_{classes[place]}.png"
        found[path] = int(first[place])
    return found


def widget(release: Release) -> list[dict[str, Any]]:
    """Return the examples of the Hub's widget, with the three best scores that were measured for each."""
    classes, (_, logits) = _table(release).classes, release.results.golden
    scores = softmax(logits.astype(float), axis=1)
    examples = []
    for path, index in widget_images(release).items():
        best = np.argsort(-scores[index])[:3]
        output = [{"label": classes[label], "score": round(float(scores[index][label]), 4)} for label in best]
        examples.append({"src": path, "example_title": Path(path).stem, "output": output})
    return examples


def default_base(releases: Releases, release: Release, hub_id: str) -> str:
    """Return the Hub id of what `release` was fine-tuned from, where `hub_id` is the release's own.

    That is its parent's id, or under another owner than the release's own the repository of that name there. "" where
    it was trained from scratch, or its parent is not among `releases` or on no Hub.
    """
    parent = releases.get(release.parent or "")
    if parent is None or parent.hub_id.partition("/")[0] == LOCAL:
        return ""
    owner = hub_id.partition("/")[0]
    return parent.hub_id if owner == release.hub_id.partition("/")[0] else f"{owner}/{parent.repository}"


def again(release: Release, base: str) -> str:
    """Return the command that trains the release again, with the Hub's names for what was read from folders."""
    parts = shlex.split(training_command(release.training))
    option = release.training.get("parent_option") or PARENT_OPTION
    values = {"--output_dir": release.name} | ({option: base} if base else {})
    for option, value in values.items():
        if option in parts:
            parts[parts.index(option) + 1] = value
    if is_cifar10(release.training["dataset"]):
        parts = without_options(parts, "--dataset")  # it is the default
    return shlex.join(parts)


def dataset_title(dataset: Mapping[str, Any]) -> str:
    """Return what the data set of a record is called in a sentence."""
    return "CIFAR-10" if is_cifar10(dataset) else str(dataset["name"])


def hub_dataset(dataset: Mapping[str, Any]) -> str | None:
    """Return the Hub id of the data set of a record; None where it was read from a folder, whose name has no slash."""
    name = CIFAR10 if is_cifar10(dataset) else str(dataset["name"])
    return name if "/" in name else None


def metadata(release: Release, name: str, base: str) -> ModelCardData:
    """Return the head of the card, by which the Hub files, finds and runs the model."""
    table = _table(release)
    measured_on, trained_on = table.provenance["dataset"], release.training["dataset"]
    known = hub_dataset(trained_on)
    return ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="image-classification",
        datasets=None if known is None else [known],
        metrics=["accuracy"],
        tags=["robustness", "anti-aliasing", *(["cifar-10"] if is_cifar10(trained_on) else [])],
        base_model=base or None,
        base_model_relation="finetune" if base else None,
        widget=widget(release),
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=hub_dataset(measured_on) or measured_on["name"],
                dataset_name=dataset_title(measured_on),
                dataset_split=measured_on["split"] + ("" if "choice" not in measured_on else ", in part"),
                metric_type="accuracy",
                metric_name=row_title(row, table.of_cifar10),
                metric_value=round(accuracy, 2),
            )
            for row, accuracy in table.accuracies().items()
        ],
    )


def render_card(
    releases: Releases, name: str, hub_id: str | None = None, base: str | None = None, revision: str | None = None
) -> str:
    """Return the card of the release `name`, README.md of its Hub repository, beside all of `releases`.

    Args:
        releases: by name; each card compares all of them.
        name: of the release.
        hub_id: of the repository, the release's own unless given.
        base: Hub id of the weights that it was fine-tuned from, as `default_base` has it unless given; "" where they
            are on no Hub.
        revision: tag that its example pins, "main" unless given.

    Raises:
        ValueError: there is no such release, it was not measured, or the releases' tables cannot be compared.
    """
    release = named(releases, name)
    hub_id = hub_id or release.hub_id
    base = default_base(releases, release, hub_id) if base is None else base if release.parent else ""
    repository = hub_id.partition("/")[2]
    template = files("nula.model_card").joinpath("template.md").read_text(encoding="utf-8")
    use = {"name": repository, "hub_id": hub_id, "revision": revision or "main"}
    sections = {**_results_section(releases, release), **_training_section(release, base)}
    card = ModelCard.from_template(metadata(release, repository, base), template_str=template, **use, **sections)
    return f"{card.content}\n"


def _results_section(releases: Releases, release: Release) -> dict[str, Any]:
    """What the template shows of measurements."""
    table = _table(release)
    count = len(table.classes)
    shown = {file.stem: caption for file, caption in pictures(releases).items()}
    main_picture = (MAIN_PICTURE, shown.pop(MAIN_PICTURE)) if MAIN_PICTURE in shown else None
    return {
        "test_images": len(table.labels),
        "measured_on": dataset_title(table.provenance["dataset"]),
        "classes": NUMBERS[count] if count < len(NUMBERS) else str(count),
        "summary_table": summary_table(releases),
        "results": results_table(releases),
        "published": bool(published_beside(releases)),
        "seeds": seeds_table(release),
        "corruptions": corruptions_table(releases),
        "severities": len(SEVERITIES),
        "attacks": attacks_table(releases),
        "attack_steps": STEPS,
        "calibration": calibration_table(releases),
        "bins": BINS,
        "claims": claims(releases),
        "definitions": definitions_table(all_on_cifar10(releases)),
        "limits": limits(release.results),
        "pictures": shown,
        "main_picture": main_picture,
    }


def _training_section(release: Release, base: str) -> dict[str, Any]:
    """What the template says of the net and its training."""
    return {
        "summary": release.summary,
        "trained_on": dataset_title(release.training["dataset"]),
        "processor": release.processor,
        "training": release.training,
        "speed": training_speed(release.training),
        "pflop": training_pflop(release.training),
        "command": again(release, base),
        "mix": mix_sentences(release.training["recipe"]),
        "notes": release.notes,
    }


def _table(release: Release) -> Table:
    table = release.results.table()
    if table is None:
        raise ValueError(f"{release.results.folder} holds no table of the twenty rows; run `nula evaluate` first.")
    return table


def claims(releases: Releases) -> list[Finding]:
    """Return what the results say of the claims of the published cards; nothing where no pair can be compared."""
    pair = published_pair(releases)
    return [] if pair is None else findings(*(release.results for release in pair))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nula card`."""
    parser.description = "Rewrite the cards, and the tables of README and docs, from the results of the releases."
    parser.add_argument("--releases", type=Path, default=Path("releases"), help="folder of releases")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the other pages")


def run(arguments: argparse.Namespace) -> None:
    """Rewrite the cards, and the tables of README and docs."""
    root: Path = arguments.releases
    try:
        releases = load_releases(root)
        for name in releases:
            (root / f"{name}.md").write_text(render_card(releases, name, revision=release_tag()), encoding="utf-8")
        compatibility = json.loads((root / "compatibility.json").read_text())
        files = [arguments.readme, *sorted(arguments.docs.glob("*.md"))]
        before = {file: file.read_text(encoding="utf-8") for file in files}
        for file, text in with_tables(before, releases, compatibility).items():
            file.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
