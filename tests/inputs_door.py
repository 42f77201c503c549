"""Bad and odd command lines, for the table inputs.md."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from inputs_pipeline import file_of
from PIL import Image

from nula.cli import main
from nula.configuration_nula import NulaConfig
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification

TITLE = "What commands give"


def called(*words: object, stdin: bytes | None = b"", folder: Path | None = None) -> str:
    """What a command line of `nula` leaves: exit code, number of lines and the first of them, last words of errors."""
    output, errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which the command changes
        # Which a test records.
        patch.setattr(warnings, "showwarning", lambda *told: errors.write(warnings.formatwarning(*told[:4])))
        patch.setattr(sys, "argv", ["nula", *map(str, words)])
        patch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        if folder is not None:
            patch.chdir(folder)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                code = main()
            except SystemExit as ended:
                code = int(ended.code or 0)
    written = output.buffer.getvalue().decode("utf-8", "backslashreplace").splitlines()
    written = [re.sub(r'("score": )[-.e0-9]+', r"\1…", line) for line in written]
    # What differs between versions of Python and machines is left out.
    varying = re.compile(r" \(choose from .*\)|(?<=there are cpu).*")
    told = [
        varying.sub("", line)
        for line in errors.getvalue().splitlines()
        if not line.endswith("could not be classified.")
    ]
    return "; ".join(
        [f"exit code {code}", *([f"{len(written)} lines, first `{written[0]}`"] if written else []), *told[-1:]]
    )


def models(folder: Path) -> None:
    """Write a tiny model to folder/model, and broken ones beside it."""
    torch.manual_seed(0)
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8, 12, 16), depths=(1, 0, 1)))
    model.classifier.bias.data = torch.arange(10.0, 0.0, -1.0)  # no two labels are about as likely
    model.save_pretrained(folder / "model")
    NulaImageProcessor().save_pretrained(folder / "model")
    for name in ("cut", "no_processor", "no_weights", "no_json", "other_kind", "not_finite"):
        shutil.copytree(folder / "model", folder / name)
    weights = (folder / "model" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[:1000])
    (folder / "no_processor" / "preprocessor_config.json").unlink()
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "no_json" / "config.json").write_text("{")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "other_kind" / "config.json").write_text(json.dumps(config | {"hidden_sizes": "wide"}))
    model.classifier.bias.data[0] = torch.nan
    model.save_pretrained(folder / "not_finite")


def files(folder: Path) -> None:
    """Write images and what is none to `folder`."""
    image = Image.new("RGB", (8, 8), "red")
    png = file_of(image, "PNG")
    for name in ("ok.png", "-x.png", "a\nb.png", "[1].png", "~.png"):
        (folder / name).write_bytes(png)
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(png)
    image.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    (folder / "text.png").write_text("no image")
    for name in ("none", "deep/linked", "words"):
        (folder / name).mkdir(parents=True)
    (folder / "deep" / "b.png").write_bytes(png)
    (folder / "deep" / "linked").rmdir()
    (folder / "deep" / "linked").symlink_to(folder / "deep")
    (folder / "words" / "a.txt").write_text("no image")
    (folder / "answers").write_text("of another day")


def corpus(folder: Path) -> dict[str, Callable[[], str]]:
    """Name of each command line to a function that tries it; files lie in `folder`."""
    models(folder)
    files(folder)
    png = (folder / "ok.png").read_bytes()
    name = os.fsencode(folder) + b"/ok.png"

    def classify(*words: object, **given: object) -> Callable[[], str]:
        return partial(called, "classify", "--model", folder / "model", "--top-k", 1, *words, folder=folder, **given)

    def of_model(model: str, *words: object) -> Callable[[], str]:
        return partial(called, "classify", "ok.png", "--model", model, *words, folder=folder)

    tried = {
        "no PATH": classify(),
        "PATH given twice": classify("ok.png", "ok.png"),
        "PATH that begins with -": classify("-x.png"),
        "PATH that begins with - behind --": classify("--", "-x.png"),
        "PATH of brackets, of a file": classify("[1].png"),
        "pattern": classify("[o]k.p*"),
        "pattern that matches nothing": classify("*.webp"),
        "PATH of Windows": classify("C:\\photos\\cat.png"),
        "PATH of a home that is nobody's": classify("~nobody-at-all/cat.png"),
        "PATH with a newline": classify("a\nb.png"),
        "PATH with a newline, --json": classify("a\nb.png", "--json"),
        "PATH that is not UTF-8, --json": classify(os.fsdecode(b"\xff.png"), "--json"),
        "PATH that is not UTF-8, --csv": classify(os.fsdecode(b"\xff.png"), "--csv"),
        "empty PATH": classify(""),
        "text named .png": classify("text.png"),
        "folder without images": classify("none"),
        "folder of text": classify("words"),
        "folder with a link to itself": classify("deep"),
        "--top-k 0": classify("ok.png", "--top-k", 0),
        "--top-k above the number of classes": classify("ok.png", "--top-k", 99, "--json"),
        "--batch-size 0": classify("ok.png", "--batch-size", 0),
        "--batch-size of words": classify("ok.png", "--batch-size", "many"),
        "--json and --csv": classify("ok.png", "--json", "--csv"),
        "--frame 1 of an animation": classify("moving.gif", "--frame", 1),
        "--frame 1 of a single image": classify("ok.png", "--frame", 1),
        "--frame -1": classify("ok.png", "--frame", -1),
        "--formats of nothing": classify("ok.png", "--formats", ","),
        "--formats that Pillow does not know": classify("ok.png", "--formats", "HEIC"),
        "--device that is none": classify("ok.png", "--device", "moon"),
        "--device that is not there": classify("ok.png", "--device", "cuda:99"),
        "--dtype that is none": classify("ok.png", "--dtype", "int8"),
        "--dtype bfloat16": classify("ok.png", "--dtype", "bfloat16"),
        "--output in no folder": classify("ok.png", "--output", "no/such/answers"),
        "--output that is a folder": classify("ok.png", "--output", "none"),
        "--output that is there": classify("ok.png", "--output", "answers"),
        "--output on a full disk": classify("ok.png", "--output", "/dev/full"),
        "-0 without -": classify("ok.png", "-0"),
        "- twice": classify("-", "-"),
        "-, standard input closed": classify("-", stdin=None),
        "-, nothing": classify("-"),
        "-, an image": classify("-", stdin=png),
        "-, half an image": classify("-", stdin=png[:40]),
        "-, SVG": classify("-", stdin=b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "-, HEIC": classify("-", stdin=b"\0\0\0\x18ftypheic" + bytes(20)),
        "-, names": classify("-", stdin=name + b"\n\n" + name),
        "-, names that end with NUL": classify("-", stdin=name + b"\0"),
        "-0 -, names that end with NUL": classify("-0", "-", stdin=name + b"\0"),
        "-, a list from Windows": classify("-", stdin=b"\xef\xbb\xbf" + name + b"\r\n"),
        "-, a name of nothing": classify("-", stdin=b"nothing.png\n"),
        "-, other binary data": classify("-", stdin=bytes(range(256))),
        "model that is not there": of_model("no/such/model"),
        "model of a name that none can have": of_model("a b/c"),
        "model that is not on the Hub, offline": of_model("nobody/nothing"),
        "model that is a file": of_model("ok.png"),
        "model in a folder that is empty": of_model("none"),
        "model whose weights are cut": of_model("cut"),
        "model without weights": of_model("no_weights"),
        "model without a processor": of_model("no_processor"),
        "model whose configuration is no JSON": of_model("no_json"),
        "model whose configuration is of wrong types": of_model("other_kind"),
        "model with a weight that is not a number": of_model("not_finite"),
        "--revision of a folder": of_model("model", "--revision", "v1.0.0"),
    }
    commands = {
        "no command": (),
        "unknown command": ("clasify",),
        "release that is not there": ("release", "v9", "--releases", folder / "none"),
        "card of no releases": ("card", "--releases", folder / "none"),
        "figures of no releases": ("figures", "--releases", folder / "none"),
        "export of a file": ("export", "--model", folder / "ok.png", "--output", folder / "x"),
        "push to no repository": ("push", "v1", "nobody", "--releases", folder / "none"),
        "app, port 0": ("app", "--port", 0),
        "app, --build that is a file": ("app", "--build", folder / "ok.png"),
        "evaluate without a study": ("evaluate",),
        "evaluate, unknown study": ("evaluate", "moon"),
        "evaluate compare, one table": ("evaluate", "compare", folder / "none"),
        "evaluate compare, no tables": ("evaluate", "compare", folder / "none", folder / "ok.png"),
        "evaluate claims, no tables": ("evaluate", "claims", folder / "none", folder / "none"),
    }
    return tried | {name: partial(called, *words, folder=folder) for name, words in commands.items()}
