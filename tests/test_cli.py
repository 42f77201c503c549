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
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version

import pytest
import torch
from conftest import CAT, ROOT
from inputs_pipeline import file_of
from PIL import Image
from safetensors.torch import load_file, save_file

from nula.classifying.model import device_called
from nula.cli import COMMANDS, main
from nula.evaluation.studies import STUDIES
from nula.pipeline_nula import NulaImageClassificationPipeline

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
        capsys.readouterr()  # of fixtures
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


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_slow_standard_input_is_answered_as_it_comes(batch_size):
    """The first answer includes the loading of the model; each of the others comes within half a second of its line."""
    command = [sys.executable, "-m", "nula", "classify", "-", "--model", MODEL, "--json", "--batch-size", batch_size]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen(list(map(str, command)), **pipes) as process:
        for number in range(4):
            began = time.monotonic()
            process.stdin.write(f"{CAT}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["answers"][0]["label"] == "cat"
            assert number == 0 or time.monotonic() - began < 0.5
            time.sleep(1)
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_lines_of_windows_and_one_without_an_end(nula):
    _, output, _ = nula("classify", "-", "--model", MODEL, "--json", stdin=f"{CAT}\r\n\r\n{DOG}")
    assert [json.loads(line)["image"] for line in output.splitlines()] == [str(CAT), DOG]


def test_patterns_are_expanded(nula, tmp_path):
    for name in ("a.png", "b/c.png", "d[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CAT.read_bytes())
    arguments = ("classify", f"{tmp_path}/**/*.png", f"{tmp_path}/d[1].png", f"{tmp_path}/*.jpg")
    code, output, errors = nula(*arguments, "--model", MODEL, "--json")
    images = [json.loads(line)["image"].removeprefix(f"{tmp_path}/") for line in output.splitlines()]
    assert images == ["a.png", "b/c.png", "d[1].png", "d[1].png", "*.jpg"]  # a file of that name goes first
    assert code == 1
    assert "*.jpg': there is no such file" in errors


def test_frames_formats_and_dtypes(nula, tmp_path):
    with Image.open(CAT) as cat, Image.open(DOG) as dog:
        small, other = cat.convert("RGB").resize((300, 300)), dog.convert("RGB").resize((300, 300))
    small.save(tmp_path / "both.tif", save_all=True, append_images=[other])
    for frame, label in ((0, "cat"), (1, "dog")):
        arguments = ("classify", tmp_path / "both.tif", "--model", MODEL, "--json", "--frame", frame, "--top-k", 1)
        assert json.loads(nula(*arguments)[1])["answers"][0]["label"] == label
        score = json.loads(nula(*arguments, "--dtype", "bfloat16")[1])["answers"][0]["score"]
        assert score == pytest.approx(json.loads(nula(*arguments)[1])["answers"][0]["score"], abs=0.02)
    small.save(tmp_path / "cat.pcx")
    arguments = ("classify", tmp_path / "cat.pcx", "--model", MODEL, "--json", "--top-k", 1)
    assert "it looks like PCX, which is not a supported format" in nula(*arguments)[2]
    assert json.loads(nula(*arguments, "--formats", "pcx")[1])["answers"][0]["label"] == "cat"


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


def test_ctrl_c_ends_a_wait_for_standard_input():
    command = [sys.executable, "-m", "nula", "classify", "-", "--model", MODEL]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A test that runs in the background of a script has the signal ignored, and so would its children.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heed, **pipes) as running:
        running.stdin.write(os.fsencode(CAT) + b"\n")
        running.stdin.flush()
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        assert running.stderr.read() == b""


REFUSED = [
    ("export", "--model", "no/such/model", "--output", "x"),
    ("export", "--model", CAT, "--output", "x"),
    ("release", "v9"),
    ("release", "v1", "--releases", "no/such/folder"),
    ("push", "v9", "a/b", "--dry-run"),
    ("push", "v1", "nobody", "--dry-run"),
    ("push", "v1", "a b/c", "--dry-run"),
    ("push", "v1", "a/b", "--tag", "a tag", "--dry-run"),
    ("card", "--releases", "no/such/folder"),
    ("card", "--releases", CAT.parent),
    ("figures", "--releases", "no/such/folder"),
    ("app", "--releases", "no/such/folder"),
    ("app", "--build", CAT),
    ("evaluate", "compare", "releases/v0/results"),
    ("evaluate", "compare", CAT, "releases/v0/results"),
    ("evaluate", "claims", "no/such/folder", "releases/v1/results"),
    ("evaluate", "table", "--model", "releases/v1", "--dataset", "no/such/folder", "--output", "x"),
    ("evaluate", "table", "--model", "releases/v1", "--dataset", CAT, "--output", "x"),
    ("evaluate", "studies", "--model", "releases/v1", "--dataset", "no/such/folder", "--output", "x"),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: " ".join(map(str, arguments)))
def test_what_cannot_be_carried_out_ends_in_one_line_and_2(nula, capsys, monkeypatch, arguments):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        nula(*arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")


def test_a_full_disk_is_told_of():
    command = [sys.executable, "-m", "nula", "classify", str(CAT), "--model", MODEL]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    told = "error: standard output cannot be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_closed_standard_output_is_told_of():
    command = f"'{sys.executable}' -m nula classify '{CAT}' --model {MODEL} >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: standard output is closed; give --output FILE.\n")


def test_a_closed_standard_error_sends_no_error_to_standard_output(tmp_path):
    command = f"'{sys.executable}' -m nula classify '{CAT}' {tmp_path}/none.png --model {MODEL} --top-k 1 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(CAT), "cat"]


def images_of(output: str) -> list[str]:
    return [json.loads(line)["image"] for line in output.splitlines()]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "QOI", "ICO", "JPEG2000", "AVIF"])
def test_an_image_on_standard_input(nula, tiny_folder, kind):
    content = file_of(Image.open(CAT).convert("RGB"), kind)
    code, output, errors = nula("classify", "-", "--model", tiny_folder, "--json", stdin=content)
    assert (code, images_of(output), errors) == (0, ["-"], "")


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", CAT.read_bytes()[:500], b"<svg/>", b"\0\0\0\x18ftypheic"])
def test_a_bad_image_on_standard_input_is_told_of(nula, tiny_folder, content):
    code, output, errors = nula("classify", "-", "--model", tiny_folder, stdin=content)
    assert (code, output) == (1, "")
    assert errors.startswith(f"error: standard input: {len(content)} bytes: ")


def test_an_empty_standard_input_is_told_of(nula, tiny_folder):
    with pytest.warns(UserWarning, match=r"standard input names no image\."):
        assert nula("classify", "-", "--model", tiny_folder) == (0, "", "")


@pytest.mark.parametrize(
    "name", ["BMW.png", "P6 2019.png", "P1000123.png", "qoif.png", "GIF.png", "II.png", "a\rb.png"]
)
def test_a_name_that_begins_as_an_image_might_is_a_name(nula, tiny_folder, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(CAT.read_bytes())
    monkeypatch.chdir(tmp_path)
    code, output, errors = nula("classify", "-", "--model", tiny_folder, "--json", stdin=f"{name}\n")
    assert (code, images_of(output), errors) == (0, [name], "")


def test_names_that_end_with_nul(nula, tiny_folder, tmp_path):
    names = [str(tmp_path / name) for name in ("a\nb.png", "c.png\r", " d.png")]
    for name in names:
        shutil.copy(CAT, name)
    stdin = "\0".join(names)
    for end in ("", "\0"):
        code, output, _ = nula("classify", "-0", "-", "--model", tiny_folder, "--json", stdin=stdin + end)
        assert (code, images_of(output)) == (0, names)
    code, output, errors = nula("classify", "-", "--model", tiny_folder, stdin=stdin)
    assert (code, output) == (2, "")
    assert "Where names end with NUL give -0." in errors


def test_a_list_from_windows(nula, tiny_folder):
    code, output, _ = nula("classify", "-", "--model", tiny_folder, "--json", stdin=f"\ufeff{CAT}\r\n{DOG}\r\n")
    assert (code, images_of(output)) == (0, [str(CAT), DOG])


def test_patterns(nula, tiny_folder, tmp_path, monkeypatch):
    for name in ("p/a.png", "p/b/c.png", "p/b/d.jpg", "p/[a].png", "p/e[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CAT, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = {
        "p/*.png": ["p/[a].png", "p/a.png", "p/e[1].png"],
        "p/**/*.png": ["p/[a].png", "p/a.png", "p/b/c.png", "p/e[1].png"],
        "p/**": ["p/[a].png", "p/a.png", "p/b/c.png", "p/b/d.jpg", "p/e[1].png"],
        "p/[a].png": ["p/[a].png"],  # a file of this very name
        "p/[b]": ["p/b/c.png", "p/b/d.jpg"],
        "p/*": ["p/[a].png", "p/a.png", "p/b/c.png", "p/b/d.jpg", "p/e[1].png"],
        "~/p/a.png": [f"{tmp_path}/p/a.png"],
    }
    for pattern, images in expected.items():
        code, output, errors = nula("classify", pattern, "--model", tiny_folder, "--json")
        assert (code, images_of(output), errors) == (0, images, ""), pattern
    code, _, errors = nula("classify", "q/*.png", "--model", tiny_folder)
    assert code == 1
    assert "error: 'q/*.png': there is no such file" in errors


def test_a_linked_folder_is_read(nula, tiny_folder, tmp_path):
    for name in ("photos", "elsewhere"):
        (tmp_path / name).mkdir()
        shutil.copy(CAT, tmp_path / name / f"{name}.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    _, output, _ = nula("classify", tmp_path / "photos", "--model", tiny_folder, "--json")
    assert images_of(output) == [f"{tmp_path}/photos/link/elsewhere.png", f"{tmp_path}/photos/photos.png"]


def test_a_name_twice_is_answered_twice(nula, tiny_folder):
    code, output, _ = nula("classify", CAT, CAT, "--model", tiny_folder, "--json")
    assert (code, images_of(output)) == (0, [str(CAT), str(CAT)])


def test_a_newline_in_a_name_in_every_form(nula, tiny_folder, tmp_path):
    name = f"{tmp_path}/a\nb\x1b.png"
    shutil.copy(CAT, name)
    _, output, _ = nula("classify", name, "--model", tiny_folder)
    assert output.splitlines()[0] == f"{tmp_path}/a\\nb\\x1b.png"
    _, output, _ = nula("classify", name, "--model", tiny_folder, "--json")
    assert images_of(output) == [name]
    _, output, _ = nula("classify", name, "--model", tiny_folder, "--csv", "--top-k", 1)
    assert [row["image"] for row in csv.DictReader(io.StringIO(output))] == [name]


def test_output_to_a_file_is_what_standard_output_shows(nula, tiny_folder, tmp_path):
    arguments = ("classify", CAT, tmp_path / "none.png", DOG, "--model", tiny_folder)
    for form in ("--json", "--csv"):
        code, shown, errors = nula(*arguments, form)
        file = tmp_path / f"answers{form}"
        assert nula(*arguments, form, "--output", file) == (code, "", errors)
        assert file.read_text() == shown
    nula(*arguments, "--output", tmp_path / "answers.txt")
    lines = (tmp_path / "answers.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [str(CAT), f"{tmp_path}/none.png", DOG]
    assert lines[7].startswith(f"  error: '{tmp_path}/none.png': there is no such file")


def test_output_overwrites_nothing(nula, tiny_folder, tmp_path):
    (tmp_path / "answers").write_text("before")
    code, _, errors = nula("classify", CAT, "--model", tiny_folder, "--output", tmp_path / "answers")
    assert code == 2
    assert errors == (
        f"error: --output {tmp_path}/answers: this file holds something already; remove it, or name another.\n"
    )
    assert (tmp_path / "answers").read_text() == "before"


def test_an_interruption_loses_no_answer(nula, tiny_folder, tmp_path, monkeypatch):
    def interrupted(pipe: object, images: Iterable, **settings: object) -> Iterator:
        assert next(iter(images)) == str(CAT)
        yield [{"label": "cat", "score": 1.0}]
        assert (tmp_path / "answers").read_text() == f"{CAT}\n  cat          1.000\n"
        raise KeyboardInterrupt

    monkeypatch.setattr("nula.pipeline_nula.NulaImageClassificationPipeline.__call__", interrupted)
    assert nula("classify", CAT, "--model", tiny_folder, "--output", tmp_path / "answers")[0] == 130
    assert (tmp_path / "answers").read_text() == f"{CAT}\n  cat          1.000\n"


def test_a_frame_is_taken(nula, tiny_folder, tmp_path):
    frames = [Image.open(file).convert("RGB").resize((32, 32)) for file in (CAT, DOG)]
    (tmp_path / "both.tif").write_bytes(file_of(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    for index, frame in enumerate(frames):
        frame.save(tmp_path / f"{index}.png")
        answers = [
            json.loads(nula("classify", image, "--model", tiny_folder, "--json", "--frame", number)[1])["answers"]
            for image, number in ((tmp_path / f"{index}.png", 0), (tmp_path / "both.tif", index))
        ]
        assert answers[0] == answers[1]
    code, _, errors = nula("classify", tmp_path / "both.tif", "--model", tiny_folder, "--frame", 2)
    assert code == 1
    assert "there is no frame 2; the first of 2 is 0." in errors


def test_dtype_and_device_reach_the_model(nula, tiny_folder, monkeypatch):
    made = []
    init = NulaImageClassificationPipeline.__init__

    def noted(pipe: NulaImageClassificationPipeline, *args: object, **kwargs: object) -> None:
        init(pipe, *args, **kwargs)
        made.append((pipe.model.dtype, str(pipe.device)))

    monkeypatch.setattr(NulaImageClassificationPipeline, "__init__", noted)
    for dtype in ("float32", "bfloat16", "float16"):
        assert nula("classify", CAT, "--model", tiny_folder, "--dtype", dtype, "--device", "cpu")[0] == 0
    assert made == [(torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float16, "cpu")]


@pytest.mark.parametrize(
    ("kind", "count", "there", "not_there"),
    [(None, 0, ["cpu"], ["cuda", "mps", "moon", "meta"]), ("cuda", 2, ["cuda", "cuda:1", "cpu"], ["cuda:2", "mps:0"])],
)
def test_a_device_that_is_not_there_is_told_of(monkeypatch, kind, count, there, not_there):
    accelerator = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    assert [str(device_called(name)) for name in there] == there
    for name in not_there:
        with pytest.raises(ValueError, match=f"--device {name}: there is no such device; there are cpu"):
            device_called(name)


def test_formats_register_their_decoder(nula, tiny_folder, tmp_path, monkeypatch):
    code, _, errors = nula("classify", CAT, "--model", tiny_folder, "--formats", "heif")
    assert code == 2
    assert errors.startswith("error: --formats HEIF needs a decoder: pip install pillow-heif (")
    package = tmp_path / "site" / "pillow_heif"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "HeifImagePlugin.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "Image.register_open('HEIF', PngImagePlugin.PngImageFile, lambda prefix: prefix.startswith(b'\\x89PNG'))\n"
        "Image.register_extension('HEIF', '.heic')\n"
    )
    (tmp_path / "photos").mkdir()
    shutil.copy(CAT, tmp_path / "photos" / "a.heic")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name, registry in (("OPEN", Image.OPEN), ("EXTENSION", Image.EXTENSION), ("ID", Image.ID)):
        monkeypatch.setattr(Image, name, registry.copy())
    try:
        code, output, errors = nula(
            "classify", tmp_path / "photos", "--model", tiny_folder, "--json", "--formats", "heif"
        )
    finally:
        for name in ("pillow_heif", "pillow_heif.HeifImagePlugin"):
            sys.modules.pop(name, None)
    assert (code, images_of(output), errors) == (0, [f"{tmp_path}/photos/a.heic"], "")


def test_the_reader_of_any_command_may_leave():
    command = f"'{sys.executable}' -m nula evaluate compare releases/v0/results releases/v1/results"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
