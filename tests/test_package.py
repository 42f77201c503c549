"""The package outside its checkout."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

from conftest import ROOT
from test_release import CODE


def test_the_citation_is_of_this_version():
    assert f"\nversion: {version('nula')}\n" in (ROOT / "CITATION.cff").read_text()


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
