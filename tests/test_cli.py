"""`nula classify`, as a shell would run it."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import version

import pytest
from conftest import CAT, ROOT
from safetensors.torch import load_file, save_file

from nula.cli import COMMANDS, main
from nula.evaluation.studies import STUDIES

MODEL = str(ROOT / "releases" / "v1")
DOG = str(CAT.with_name("dog.jpg"))


@pytest.fixture
def nula(monkeypatch, capsys):
    """Run the command; give exit code, standard output and standard error."""

    def run(*arguments: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nula", *map(str, arguments)])
        given = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main changes it
        code = main()
        return code, *capsys.readouterr()

    return run


def test_text(nula):
    code, output, errors = nula("classify", CAT, DOG, "--model", MODEL, "--top-k", 2)
    lines = output.splitlines()
    assert (code, len(lines), errors) == (0, 6, "")
    assert [lines[0], lines[3]] == [str(CAT), DOG]
    assert lines[1].split()[0] == "cat"
    assert 0 < float(lines[1].split()[1]) < 1


def test_json_and_csv_tell_the_same(nula):
    _, output, _ = nula("classify", CAT, DOG, "--model", MODEL, "--json")
    objects = [json.loads(line) for line in output.splitlines()]
    assert [entry["image"] for entry in objects] == [str(CAT), DOG]
    _, output, _ = nula("classify", CAT, DOG, "--model", MODEL, "--csv")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert len(rows) == 10
    told = [(entry["image"], answer["label"]) for entry in objects for answer in entry["answers"]]
    assert told == [(row["image"], row["label"]) for row in rows]
    scores = [answer["score"] for entry in objects for answer in entry["answers"]]
    assert scores == pytest.approx([float(row["score"]) for row in rows])
    assert [row["rank"] for row in rows] == list("12345") * 2


def test_folders_and_standard_input(nula, tmp_path):
    for name in ("b.png", "a/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CAT.read_bytes())
    code, output, _ = nula("classify", tmp_path, "-", "--model", MODEL, "--json", stdin=f"{DOG}\n\n{tmp_path}/b.png\n")
    assert code == 0
    images = [json.loads(line)["image"] for line in output.splitlines()]
    assert images == [f"{tmp_path}/a/c.png", f"{tmp_path}/b.png", DOG, f"{tmp_path}/b.png"]


def test_what_cannot_be_classified_is_told_and_the_rest_goes_on(nula, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    arguments = ("classify", tmp_path / "none.png", CAT, tmp_path / "notes.png", "--model", MODEL)
    code, output, errors = nula(*arguments)
    assert code == 1
    assert output.splitlines()[0] == str(CAT)
    assert f"error: '{tmp_path}/none.png': there is no such file" in errors
    assert f"error: '{tmp_path}/notes.png': this is no image of a supported format" in errors
    assert "error: 2 of 3 images could not be classified." in errors
    code, output, _ = nula(*arguments, "--json")
    assert code == 1
    assert ["error" in json.loads(line) for line in output.splitlines()] == [True, False, True]
    code, output, _ = nula(*arguments, "--csv", "--top-k", 1)
    assert code == 1
    assert [bool(row["error"]) for row in csv.DictReader(io.StringIO(output))] == [True, False, True]


def test_a_folder_without_images_is_an_error(nula, tmp_path):
    code, output, errors = nula("classify", "-", "--model", MODEL, stdin=f"{tmp_path}\n-\n")
    assert (code, output) == (1, "")
    assert f"error: '{tmp_path}': this folder holds no image." in errors


def test_weights_of_another_model_are_refused(nula, tmp_path):
    shutil.copytree(MODEL, tmp_path / "other", ignore=shutil.ignore_patterns("results"))
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file({f"x.{name}": tensor for name, tensor in weights.items()}, tmp_path / "other" / "model.safetensors")
    code, output, errors = nula("classify", CAT, "--model", tmp_path / "other")
    assert (code, output) == (2, "")
    assert f"error: {tmp_path}/other cannot be loaded: the weights of" in errors


def test_damaged_weights_are_no_model(nula, tmp_path):
    shutil.copytree(MODEL, tmp_path / "short", ignore=shutil.ignore_patterns("results"))
    weights = tmp_path / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    code, output, errors = nula("classify", CAT, "--model", tmp_path / "short")
    assert (code, output) == (2, "")
    assert f"the weights of {tmp_path}/short cannot be loaded" in errors
    shutil.copy(f"{MODEL}/model.safetensors", weights)
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"stem_channels": 8}))
    code, output, errors = nula("classify", CAT, "--model", tmp_path / "short")
    assert (code, output) == (2, "")
    assert "error:" in errors


def test_a_name_that_is_not_utf_8(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(CAT.read_bytes())
    command = [sys.executable, "-m", "nula", "classify", "-", "--model", MODEL, "--json"]
    done = subprocess.run(command, input=name + b"\n", capture_output=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"\xff.png" in done.stdout
    assert b'"label": "cat"' in done.stdout


def test_ctrl_c_ends_with_130(nula, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nula.records.weights.load_model", interrupted)
    assert nula("classify", CAT, "--model", MODEL)[0] == 130


def test_a_model_that_is_not_there(nula, tmp_path):
    code, output, errors = nula("classify", CAT, "--model", tmp_path / "none")
    assert (code, output) == (2, "")
    assert f"error: {tmp_path}/none cannot be loaded" in errors


@pytest.mark.parametrize(
    "arguments", [["classify"], ["classify", "a.png", "--top-k", "0"], ["classify", "a.png", "--json", "--csv"], []]
)
def test_bad_arguments_end_with_2(nula, arguments):
    with pytest.raises(SystemExit) as ended:
        nula(*arguments)
    assert ended.value.code == 2


def test_a_reader_that_has_had_enough_is_no_error():
    images = f"{CAT} " * 200  # more output than a pipe's buffer on either side holds
    command = f"'{sys.executable}' -m nula classify {images} --model {MODEL} --batch-size 10"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1, "")


def test_one_help_shows_every_command(nula, capsys):
    with pytest.raises(SystemExit) as ended:
        nula("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in COMMANDS)
    with pytest.raises(SystemExit):
        nula("--version")
    assert capsys.readouterr().out == f"nula {version('nula')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(nula, capsys, name):
    with pytest.raises(SystemExit) as ended:
        nula(name, "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: nula {name} ")


@pytest.mark.parametrize("study", [study.name for study in STUDIES])
def test_every_study_explains_itself(nula, capsys, study):
    with pytest.raises(SystemExit) as ended:
        nula("evaluate", study, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: nula evaluate {study} ")
    assert "--dataset" in shown


def test_a_command_whose_packages_are_missing_says_what_to_install(nula, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "nula.publishing.export", raising=False)
    with pytest.raises(SystemExit) as ended:
        nula("export", "--model", MODEL, "--output", "x")
    assert ended.value.code == 2
    assert "error: nula export needs onnx; pip install 'nula[export]'." in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = """
import sys
import time
from nula.cli import main
sys.argv = ["nula", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_slow_standard_input_is_answered_as_it_comes():
    command = [sys.executable, "-m", "nula", "classify", "-", "--model", MODEL, "--json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as running:

        def answered(name: str) -> float:
            """Seconds until the answer of a name is there."""
            running.stdin.write(f"{name}\n")
            running.stdin.flush()
            start = time.monotonic()
            assert json.loads(running.stdout.readline())["image"] == name
            return time.monotonic() - start

        answered(str(CAT))  # the model is loaded
        for name in (DOG, str(CAT)):
            time.sleep(2)
            assert answered(name) < 0.5
        errors = running.communicate(timeout=60)[1]
    assert (running.returncode, errors) == (0, "")


def test_ctrl_c_ends_a_wait_for_standard_input():
    command = [sys.executable, "-m", "nula", "classify", "-", "--model", MODEL]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as running:
        running.stdin.write(os.fsencode(CAT) + b"\n")
        running.stdin.flush()
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        assert running.stderr.read() == b""
