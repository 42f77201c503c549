"""The app of the Space, driven in headless Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import CAT, ROOT
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from nula.image_processing_nula import NulaImageProcessor
from nula.model_card.release import assemble
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.weights import load_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the Space, assembled as `make space` does it, runs with the released models."""
    folder = tmp_path_factory.mktemp("space")
    subprocess.run(["make", "--silent", "space", f"SPACE={folder}/space"], cwd=ROOT, check=True)
    models = {version: str(assemble(version, ROOT / "releases", folder)) for version in ("v0", "v1")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(folder / "space" / "app.py"), "--port", str(port)]
    command += [part for version, model in models.items() for part in (f"--{version}", model)]
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
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian's package is called chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        shown = browser.new_page(viewport={"width": 1200, "height": 900})
        shown.set_default_timeout(PATIENCE)
        shown.goto(address)
        yield shown
        browser.close()


def test_an_example_is_perturbed_and_classified_by_both(page: Page, tmp_path: Path):
    page.locator("button.gallery-item:has(img[src$='/cat.png'])").click()
    answers = {version: page.locator(f"#{version}") for version in ("v0", "v1")}
    for version, shown in answers.items():
        pipe = NulaImageClassificationPipeline(
            model=load_model(ROOT / "releases" / version), image_processor=NulaImageProcessor()
        )
        best = pipe(CAT)[0]
        expect(shown).to_contain_text(best["label"], timeout=PATIENCE)
        expect(shown).to_contain_text(f"{100 * best['score']:.0f}%")
    seen = page.locator("#seen img")
    before = {version: shown.inner_text() for version, shown in answers.items()}, seen.get_attribute("src")
    page.get_by_label("number input for Gaussian noise").fill("0.2")
    page.get_by_label("number input for Gaussian noise").press("Enter")
    for version, shown in answers.items():
        expect(shown).not_to_have_text(before[0][version], timeout=PATIENCE)
    expect(seen).not_to_have_attribute("src", before[1])
    page.screenshot(path=tmp_path / "app.png")
    assert np.asarray(Image.open(tmp_path / "app.png")).std() > 10
