"""The package outside its checkout."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest
import yaml
from conftest import ROOT
from packaging.specifiers import SpecifierSet
from test_release import CODE

from nula.publishing.site import site_files


def test_the_citation_is_of_this_version():
    assert f"\nversion: {version('nula')}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_changelog_tells_of_this_version():
    assert f"\n## {version('nula')}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_the_project_supports_and_the_makefile_has():
    [job] = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"].values()
    tomllib = pytest.importorskip("tomllib", reason="of Python 3.11 and newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = job["strategy"]["matrix"]
    pythons = SpecifierSet(project["requires-python"])
    assert len(matrix["python"]) >= 3
    assert all(python in pythons for python in matrix["python"])
    [asked] = [line for line in project["dependencies"] if line.startswith("transformers")]
    others = [one["transformers"] for one in matrix["include"]]
    assert others
    assert all(one in SpecifierSet(asked.removeprefix("transformers")) for one in others)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    commands = [step["run"] for step in job["steps"] if "run" in step]
    made = [command.removeprefix("make ") for command in commands if command.startswith("make ")]
    assert {"setup", "lint"} <= set(made) <= set(targets)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["make lint"]


def test_the_wheel_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"  # a build leaves folders behind
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "runs", "releases", "*.egg-info"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        archive.extractall(tmp_path / "site")
    assert all(name.startswith("nula/") for name in names)
    assert {f"nula/{name}" for name in CODE} <= set(names)
    assert "nula/model_card/template.md" in names
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import nula.modeling_nula as m, nula.evaluation.command, nula.train.launch, nula.model_card.tables as c\n"
        "from nula.configuration_nula import NulaConfig\n"
        "assert m.__file__.startswith(sys.argv[1]), m.__file__\n"
        "m.NulaForImageClassification(NulaConfig()); print(c.published('published_v1')['Clean (CIFAR-10 Test)'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "89.5"


def test_the_site_has_every_page_and_refuses_a_link_that_leads_nowhere(tmp_path):
    files = {file.relative_to(ROOT).as_posix() for file in site_files()}
    pages = {f"docs/{file.name}" for file in (ROOT / "docs").iterdir()}
    assert pages | {"README.md", "releases/v1.md", "releases/figures/table.png", "CHANGELOG.md"} <= files
    assert not [name for name in files if name.endswith(".safetensors")]
    places = re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(places) >= 15
    assert set(places) <= files
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("[here](docs/a.md) and [not](there)\n")
    (tmp_path / "docs" / "a.md").write_text("[back](../README.md#top) [far](https://example.org)\n")
    with pytest.raises(ValueError, match=r"README.md links to there, which is no file"):
        site_files(tmp_path)
    (tmp_path / "README.md").write_text("[`here`](docs/a.md) `[not](there)`\n```\n[x](y)\n```\n")
    assert site_files(tmp_path) == {tmp_path / "README.md", tmp_path / "docs" / "a.md"}


def test_the_site_is_built_without_a_warning(tmp_path):
    """Of pages that are reached by links, and of docstrings; with links to places on a page."""
    source, typed = tmp_path / "source", tmp_path / "typed"
    typed.mkdir()
    (typed / "nula").symlink_to(ROOT)
    run = {"check": True, "cwd": typed, "timeout": 600}
    subprocess.run([sys.executable, "-m", "nula.publishing.site", source], **run)
    settings = (ROOT / "mkdocs.yml").read_text()
    for name, folder in {
        "build/site/source": source,
        "build/site/html": tmp_path / "html",
        "build/typed": typed,
    }.items():
        assert name in settings
        settings = settings.replace(name, str(folder))
    (tmp_path / "mkdocs.yml").write_text(settings)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", tmp_path / "mkdocs.yml"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "rescale_convolutions" in (tmp_path / "html" / "docs" / "api" / "index.html").read_text()
