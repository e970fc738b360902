"""The app: its runs as functions, and the page in a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import app
import dinov2_saliency
import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from algm_patch import apply_algm, remove_algm

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DEFAULT: dict[str, Any] = {
    "clap_layer": 1,
    "gbm_layers": (5,),
    "tau": "auto",
    "window": (2, 2),
    "proportional_attention": True,
}


@pytest.fixture(scope="module")
def model():
    return dinov2_saliency.load()


@pytest.fixture(autouse=True)
def _small_and_once(monkeypatch):
    """Run at 252 pixels a side and time one round: the page does the same, in less time."""
    monkeypatch.setattr(pictures, "SIDE", 252)
    monkeypatch.setattr(app, "ROUNDS", 1)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "astronaut.png"
    Image.fromarray(astronaut()).save(path)
    return str(path)


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_run_shows_groups_predictions_and_costs(model, photograph):
    found = app.run(model, photograph, DEFAULT)
    assert not hasattr(model, "algm")
    titles = [title.split(":")[0] for _, title in found.pictures]
    assert titles[2:] == [
        "CLAP in layer 1",
        "GBM in layer 5",
        "prediction, unpatched",
        "prediction, merging",
        "difference",
    ]
    assert all(picture.shape == (252, 252, 3) and picture.dtype == np.uint8 for picture, _ in found.pictures)
    apply_algm(model, **DEFAULT)
    with torch.no_grad():
        model(pictures.to_input(app.read(photograph)))
    assert f"| tokens after the last layer | 325 | {model.algm.tokens_per_layer[-1]} |" in found.numbers
    work = re.search(r"GFLOPs of the ViT \| ([\d.]+) \| ([\d.]+) \|", found.numbers)
    assert work.groups() == (f"{model.algm.unpatched_gflops:.1f}", f"{model.algm.gflops:.1f}")
    remove_algm(model)
    assert re.search(r"ms, measured \| \d+ \| \d+ \|", found.numbers)
    assert not hasattr(model, "algm")


def test_settings_found_by_measurement_hold_until_a_control_is_moved():
    found = {**DEFAULT, "tau": 0.95123, "compare": "key", "gbm_tau": (0.8,)}
    controls = app.controls_of(found)
    assert app.settings_of(found, *controls) == found
    auto, tau, clap_layer, *others = controls
    assert app.settings_of(found, auto, round(tau, 3), clap_layer, *others) == found
    moved = app.settings_of(found, auto, 0.9, clap_layer, *others)
    assert moved == {**DEFAULT, "tau": 0.9}
    assert app.settings_of({}, True, 0.9, 0, [9, 5], 3, False) == {
        "clap_layer": None,
        "gbm_layers": (5, 9),
        "tau": "auto",
        "window": (3, 3),
        "proportional_attention": False,
    }


@pytest.fixture
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=90_000)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def address(model):
    blocks = app.page(model)
    yield blocks.launch(prevent_thread_lock=True, quiet=True)[1]
    blocks.close()


def visit(browser, address):
    visitor = browser.new_page(viewport={"width": 1280, "height": 1000})
    visitor.set_default_timeout(90_000)
    visitor.goto(address)
    return visitor


def upload(visitor, path):
    visitor.locator("#upload input[type=file]").set_input_files(str(path))


def tokens_left(model, path, tau):
    """Return the number of tokens after the last layer, as the page shows it."""
    return app.run(model, path, {**DEFAULT, "tau": tau}).numbers.splitlines()[2].split("|")[3].strip()


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@needs_chromium
def test_a_visit(browser, address, model, photograph, tmp_path):
    """Load the page, upload an image, change the threshold: the numbers change. A bad upload is refused."""
    from playwright.sync_api import expect

    first, then = (tokens_left(model, photograph, tau) for tau in ("auto", 0.8))
    assert first != then

    visitor = visit(browser, address)
    numbers = visitor.locator("#numbers")
    expect(numbers).to_contain_text(app.HINT)
    upload(visitor, photograph)
    expect(numbers).to_contain_text(first)
    expect(visitor.locator("#pictures img").first).to_be_visible()
    visitor.screenshot(path=tmp_path / "app.png")
    visitor.get_by_label("threshold by the image itself").uncheck()
    tau = visitor.locator("#tau input[type=number]")
    tau.fill("0.8")
    tau.press("Enter")
    expect(numbers).to_contain_text(then)
    visitor.locator("#upload").get_by_label("Clear").first.click()
    upload(visitor, text(tmp_path / "bad.png", b"no image"))
    expect(visitor.get_by_text("not an image that can be read")).to_be_visible()
    assert Image.open(tmp_path / "app.png").size == (1280, 1000)


@needs_chromium
def test_visitors_do_not_mix(browser, address, model, photograph):
    from playwright.sync_api import expect

    paths = [photograph, app.photographs()[1]]
    left = [tokens_left(model, path, "auto") for path in paths]
    assert left[0] != left[1]
    visitors = [visit(browser, address) for _ in paths]
    for visitor, path in zip(visitors, paths, strict=True):
        upload(visitor, path)
    for visitor, count in zip(visitors, left, strict=True):
        expect(visitor.locator("#numbers")).to_contain_text(count)


@needs_chromium
def test_the_button_applies_what_tune_finds(browser, address, model, photograph, monkeypatch):
    from playwright.sync_api import expect

    def tune(model, images, keep, *, predict, budget):
        assert (len(images), keep, budget) == (5, 0.98, app.BUDGET)
        assert predict(model, images[:1]).shape == (1, 1, 448, 448)
        return apply_algm(model, clap_layer=2, gbm_layers=[3, 7], tau=0.9).algm.settings

    monkeypatch.setattr(app, "tune", tune)
    visitor = visit(browser, address)
    numbers, before = visitor.locator("#numbers"), tokens_left(model, photograph, "auto")
    upload(visitor, photograph)
    expect(numbers).to_contain_text(before)
    visitor.locator("#tune").click()
    expect(visitor.locator("#tau input[type=number]")).to_have_value("0.9")
    for layer in (3, 7):
        expect(visitor.get_by_role("checkbox", name=str(layer), exact=True)).to_be_checked()
    expect(numbers).not_to_contain_text(before)
