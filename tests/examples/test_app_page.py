"""The app's page in a browser, on a desktop and on a phone."""

from __future__ import annotations

import copy
import threading
from typing import Any

import app
import app_screenshots
import pytest
import runs
from playwright.sync_api import expect

from algm_patch import apply_algm
from algm_patch.tuning.tune import NothingFoundError

pytestmark = [
    pytest.mark.skipif(app_screenshots.CHROMIUM is None, reason="needs Chromium: apt install chromium"),
    pytest.mark.usefixtures("small_and_once"),
]
DESKTOP, PHONE = app_screenshots.SIZES.values()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=1000 * app_screenshots.SECONDS)
    with app_screenshots.open_browser() as found:
        yield found


@pytest.fixture
def address(model):
    blocks = app.page(copy.deepcopy(model))  # which may still run when a test ends
    yield blocks.launch(prevent_thread_lock=True, quiet=True)[1]
    blocks.close()


@pytest.fixture
def visitor(browser, address):
    found = app_screenshots.visit(browser, address, DESKTOP)
    yield found
    found.close()


def upload(visitor, path):
    visitor.locator("#upload").get_by_label("Clear").first.click()
    visitor.locator("#upload input[type=file]").set_input_files(str(path))


def patches_left(model, path, **settings):
    """Return the number of patch tokens after the last layer, as the page shows it."""
    return f"<strong>{runs.run(model, path, settings).patches[1]}</strong>"


def expect_numbers(visitor, html):
    visitor.wait_for_function("html => document.querySelector('#numbers').innerHTML.includes(html)", arg=html)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_first_example_is_there_whole_at_once(browser, address, model, size):
    visitor = app_screenshots.visit(browser, address, size)
    assert patches_left(model, runs.photographs()[0]) in visitor.locator("#numbers").inner_html()
    boxes = [box.bounding_box() for box in visitor.locator("#pictures img").all()]
    assert len(boxes) == 7
    assert all(box["width"] == pytest.approx(box["height"], abs=1) for box in boxes)  # the photograph is square
    assert visitor.evaluate("document.documentElement.scrollWidth") <= size[0]
    thumbnails = [box.bounding_box() for box in visitor.locator("#examples img").all()]
    assert all(box["width"] > 50 for box in thumbnails)
    image, result, settings = (visitor.locator(f"#{part}").bounding_box() for part in ("image", "result", "settings"))
    if size == DESKTOP:
        assert max(box["y"] + box["height"] for box in boxes) <= size[1]
    else:
        assert image["y"] + image["height"] <= result["y"]
        assert boxes[0]["y"] + boxes[0]["height"] <= size[1]
        assert result["y"] + result["height"] <= settings["y"]
    visitor.close()


def test_a_visit(visitor, model, photograph, tmp_path):
    """Choose an example, upload an image, change the threshold: the numbers change. A bad upload is said once."""
    of_example = patches_left(model, runs.photographs()[1])
    of_upload, of_upload_at_tau = (patches_left(model, photograph, tau=tau) for tau in ("auto", 0.8))
    assert len({of_example, of_upload, of_upload_at_tau}) == 3
    visitor.locator("#examples img").nth(1).click()
    expect_numbers(visitor, of_example)
    upload(visitor, photograph)
    expect_numbers(visitor, of_upload)
    tau = visitor.locator("#tau input[type=number]")
    expect(tau).to_be_disabled()
    visitor.get_by_label("threshold by the image itself").uncheck()
    expect(tau).to_be_enabled()
    tau.fill("0.8")
    tau.press("Enter")
    expect_numbers(visitor, of_upload_at_tau)
    (tmp_path / "bad.png").write_bytes(b"no image")
    upload(visitor, tmp_path / "bad.png")
    expect(visitor.get_by_text("not an image that can be read")).to_have_count(1)
    expect(visitor.locator("#pictures img")).to_have_count(0)
    expect(visitor.get_by_text("Error")).to_have_count(0)


def test_old_pictures_stay_dimmed_while_new_ones_come(visitor, monkeypatch):
    may_go_on, run = threading.Event(), runs.run
    monkeypatch.setattr(runs, "run", lambda *arguments: may_go_on.wait(app_screenshots.SECONDS) and run(*arguments))
    old = visitor.locator("#pictures img").first.get_attribute("src")
    visitor.locator("#examples img").nth(1).click()
    dimmed = visitor.locator("#pictures .pending")
    expect(dimmed).to_have_css("opacity", "0.4")
    assert dimmed.locator("img").first.get_attribute("src") == old
    may_go_on.set()
    expect(dimmed).to_have_count(0)
    assert visitor.locator("#pictures img").first.get_attribute("src") != old


def test_visitors_do_not_mix(browser, address, model):
    examples = runs.photographs()[1:3]
    left = [patches_left(model, path) for path in examples]
    assert left[0] != left[1]
    visitors = [app_screenshots.visit(browser, address, DESKTOP) for _ in examples]
    for number, visitor in enumerate(visitors, 1):
        visitor.locator("#examples img").nth(number).click()
    for visitor, count in zip(visitors, left, strict=True):
        expect_numbers(visitor, count)
        visitor.close()


def test_the_button_applies_what_tune_finds(visitor, model, photograph, monkeypatch):
    may_go_on = threading.Event()
    merging: dict[str, Any] = {"clap_layer": 2, "gbm_layers": (3, 7), "tau": 0.9}

    def tune(model, images, keep, *, predict, budget):
        assert (len(images), keep, budget) == (5, 0.98, f"{runs.BUDGET}s")
        assert predict(model, images[-1]).shape[2:] == images[-1].shape[2:]  # as it is shown
        may_go_on.wait(app_screenshots.SECONDS)
        return apply_algm(model, **merging).algm.settings

    monkeypatch.setattr(runs, "tune", tune)
    before, after = (patches_left(model, photograph, **settings) for settings in ({}, merging))
    assert before != after
    upload(visitor, photograph)
    expect_numbers(visitor, before)
    expect(visitor.locator(".pending")).to_have_count(0)
    visitor.locator("#tune").click()
    progress = visitor.locator("[data-testid=status-tracker]:not(.hide)")
    expect(progress).to_have_count(1)
    expect(visitor.locator("#said").locator(progress)).to_have_count(1)
    may_go_on.set()
    expect(visitor.locator("#tau input[type=number]")).to_have_value("0.9")
    for layer in (3, 7):
        expect(visitor.get_by_role("checkbox", name=str(layer), exact=True)).to_be_checked()
    expect_numbers(visitor, after)


def test_that_nothing_better_was_found_is_said_at_the_button(visitor, monkeypatch):
    def tune(*arguments, **keywords):
        raise NothingFoundError("tune: nothing keeps enough. Ask for less")

    monkeypatch.setattr(runs, "tune", tune)
    before = visitor.locator("#numbers").inner_text()
    visitor.locator("#tune").click()
    said = visitor.locator("#said")
    expect(said).to_contain_text("No better settings found; yours stay. The search says: nothing keeps enough")
    expect(visitor.get_by_text("nothing keeps enough")).to_have_count(1)
    assert visitor.locator("#numbers").inner_text() == before
