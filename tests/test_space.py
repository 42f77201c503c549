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

import pytest
import torch
from conftest import CAT, ROOT, call_command
from huggingface_hub import SpaceCard
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
