"""The app of the Space, driven in headless Chromium."""

import argparse
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from conftest import CAT, ROOT, call_command
from huggingface_hub import SpaceCard
from inputs_pipeline import file_of
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.card import release_tag
from nula.perturbations.sampling import checkerboard, decimate, resize
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.publishing import app as app_command
from nula.publishing.app import assemble_space
from nula.publishing.payload import assemble
from nula.records.release import Release
from nula.records.weights import load_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def address(releases: dict[str, Release], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the Space, assembled as `nula app` does it, runs with the released models."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian's package is called chromium")
    folder = tmp_path_factory.mktemp("space")
    assemble_space(releases, folder / "space")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(folder / "space" / "app.py"), "--port", str(port)]
    command += [f"{name}={assemble(releases, name, folder)}" for name in releases]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    log = (folder / "log").open("w+")
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as app:
        found = f"http://127.0.0.1:{port}"
        for _ in range(240):
            assert app.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(found, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield found
        app.terminate()


@pytest.fixture(scope="module")
def page(address: str) -> Page:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        shown = browser.new_page(viewport={"width": 1200, "height": 900})
        shown.set_default_timeout(PATIENCE)
        shown.goto(address)
        yield shown
        browser.close()


def test_an_example_is_perturbed_and_classified_by_all(page: Page, releases: dict[str, Release], tmp_path: Path):
    page.locator("button.gallery-item:has(img[src$='/cat.png'])").click()
    answers = {name: page.locator(f"#{name}") for name in releases}
    for name, shown in answers.items():
        pipe = NulaImageClassificationPipeline(
            model=load_model(releases[name].folder), image_processor=NulaImageProcessor()
        )
        best = pipe(CAT)[0]
        expect(shown).to_contain_text(best["label"], timeout=PATIENCE)
        expect(shown).to_contain_text(f"{100 * best['score']:.0f}%")
    seen = page.locator("#seen img")
    for slider, value in (("Gaussian noise", "0.1"), ("Resize", "0.25"), ("Decimation", "2"), ("Checkerboard", "0.2")):
        before = [shown.inner_text() for shown in answers.values()], seen.get_attribute("src")
        box = page.get_by_label(f"number input for {slider}")
        box.fill(value)
        box.press("Enter")
        for shown, text in zip(answers.values(), before[0]):
            expect(shown).not_to_have_text(text, timeout=PATIENCE)
        expect(seen).not_to_have_attribute("src", before[1])
        seen.evaluate("image => image.decode()")
        page.screenshot(path=tmp_path / f"{slider}.png")  # that of the noise, cut, is space/screenshot.png


def test_what_cannot_be_read_is_told_in_the_page(address: str, page: Page, tmp_path: Path):
    Image.fromarray(np.full((8, 8), 300.0, dtype=np.float32)).save(tmp_path / "float.tif")
    page.goto(address)
    page.locator("input[type=file]").first.set_input_files(tmp_path / "float.tif")
    told = page.get_by_test_id("toast-body")
    reason = "This image cannot be read: 390 bytes: values must lie in [0, 1], got 300 to 300."
    expect(told).to_contain_text(reason, timeout=PATIENCE)


@pytest.fixture
def app():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "space" / "app.py")))


@pytest.fixture
def pipe(tiny_model):
    return NulaImageClassificationPipeline(model=tiny_model, image_processor=NulaImageProcessor())


def upload(folder: Path, content: bytes) -> dict:
    """What the app is given for a file with this content."""
    (folder / "upload").write_bytes(content)
    return {"path": str(folder / "upload")}


UNREADABLE = {
    "no bytes": (b"", "0 bytes: it holds no bytes"),
    "text": (b"not an image", "this is no image of a supported format"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is no image of a supported format"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it looks like EPS, which is not a supported format"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(20), "it looks like HEIF, which is not a supported format"),
    "half a PNG": (CAT.read_bytes()[:2000], "Truncated File Read"),
    "float TIFF": (file_of(Image.new("F", (4, 4), 300.0), "TIFF"), r"values must lie in \[0, 1\], got 300 to 300"),
    "huge": (file_of(Image.new("1", (20_000, 20_000)), "PNG"), "it has more pixels than"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_reason_of_an_unreadable_file_is_shown(app, pipe, name, tmp_path):
    content, reason = UNREADABLE[name]
    with pytest.raises(gr.Error, match=reason) as raised:
        app.read(upload(tmp_path, content), pipe)
    assert str(tmp_path) not in raised.value.message
    assert raised.value.message.startswith(f"This image cannot be read: {len(content):,} bytes: ")


def test_a_reason_is_no_markup(app, tmp_path):
    def pipe(content: bytes) -> None:
        raise ValueError("<img src=x>")

    with pytest.raises(gr.Error, match="&lt;img src=x&gt;"):
        app.read(upload(tmp_path, b""), pipe)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_is_read_as_the_pipeline_reads_it(app, pipe, mode, tmp_path):
    image = Image.new(mode, (40, 20))
    content = file_of(image, "TIFF")
    pixels = app.read(upload(tmp_path, content), pipe)
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.equal(pixels, pipe.image_processor.pixels(image).float() / 255)


def test_an_animation_shows_its_first_frame(app, pipe, tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert app.read(upload(tmp_path, content), pipe)[0, :, 0, 0].tolist() == [1, 0, 0]


def test_an_address_is_not_read(app, pipe):
    with pytest.raises(gr.Error, match="Upload a file: addresses are not read"):
        app.read({"path": None, "url": "data:image/png;base64,"}, pipe)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--port", "0"], "'0' must be an integer from 1 to 65535"),
        (["--port", "x"], "'x' must be an integer from 1 to 65535"),
        ([f"a={ROOT}", f"a={ROOT}"], "each NAME can be given once"),
        (["a=no/such/folder"], "must be NAME=FOLDER"),
        ([f"a={ROOT / 'examples'}"], "error: "),
        ([], "error: "),  # models.json is made when the Space is assembled
    ],
)
def test_bad_arguments_of_the_app_end_in_one_line(app, monkeypatch, capsys, words, problem):
    monkeypatch.setattr(sys, "argv", ["app.py", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_the_space_takes_the_releases_it_was_made_with(releases, three_releases, tmp_path):
    for found in (releases, three_releases):
        assemble_space(found, tmp_path / "space")
        models = json.loads((tmp_path / "space" / "models.json").read_text())
        assert models == {name: {"model": release.hub_id, "revision": release_tag()} for name, release in found.items()}
        card = SpaceCard.load(tmp_path / "space" / "README.md")
        assert card.data.models == [release.hub_id for release in found.values()]
        assert card.data.app_file == "app.py"
    assert (tmp_path / "space" / "examples" / "cat.png").is_file()


def test_the_space_needs_nothing_but_its_own_files(releases, tmp_path):
    assemble_space(releases, tmp_path / "space")
    code = "import app, nula, sys; print(nula.__file__); print(sorted(n for n in sys.modules if n.startswith('nula')))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "space", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, modules = done.stdout.splitlines()
    assert where == str(tmp_path / "space" / "nula" / "__init__.py")
    assert modules == str(
        ["nula", "nula.perturbations", "nula.perturbations.appearance", "nula.perturbations.sampling"]
    )


def test_nula_app_starts_every_release(three_releases, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        app_command.subprocess,
        "run",
        lambda command: started.append(command) or subprocess.CompletedProcess(command, 0),
    )
    root, build = three_releases["v2"].folder.parent, tmp_path / "build"
    call_command(app_command, "--releases", root, "--build", build, "--assemble-only")
    assert started == []
    assert [file.name for file in build.iterdir()] == ["space"]
    call_command(app_command, "--releases", root, "--build", build, "--port", 7999)
    payloads = [f"{name}={build / release.repository}" for name, release in three_releases.items()]
    assert started == [[sys.executable, str(build / "space" / "app.py"), *payloads, "--port", "7999"]]
    assert (build / "nula-tiny" / "model.safetensors").is_file()


@pytest.mark.parametrize("text", ["v1", "=build", "v1=", "v1=no/such/folder"])
def test_what_names_no_model_is_refused(text):
    named_folder = runpy.run_path(str(ROOT / "space" / "app.py"))["named_folder"]
    with pytest.raises(argparse.ArgumentTypeError, match="must be NAME=FOLDER with the folder of an assembled release"):
        named_folder(text)
    assert named_folder(f"a={ROOT}") == ("a", {"model": str(ROOT)})


def test_the_sliders_are_the_operators(pixels):
    perturb = runpy.run_path(str(ROOT / "space" / "app.py"))["perturb"]
    assert perturb(pixels, 1.0, 0, 0.0, 0.0) is pixels
    assert torch.equal(perturb(pixels, 0.25, 0, 0.0, 0.0), resize(pixels, 0.25, "bilinear"))
    assert torch.equal(perturb(pixels, 1.0, 1, 0.0, 0.0), decimate(pixels, 2))
    assert torch.equal(perturb(pixels, 1.0, 2, 0.0, 0.0), decimate(pixels, 4))
    assert torch.equal(perturb(pixels, 1.0, 0, 0.05, 0.0), checkerboard(pixels, 0.05))
    assert (perturb(pixels, 1.0, 0, 0.0, 0.1) - pixels).std().item() == pytest.approx(0.1, rel=0.15)
    together = checkerboard(decimate(resize(pixels, 0.5, "bilinear"), 2), 0.05)
    assert torch.equal(perturb(pixels, 0.5, 1, 0.05, 0.0), together)
