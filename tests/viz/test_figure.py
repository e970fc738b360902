"""Figures and contact sheets."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage.data import astronaut

from algm_patch import apply_algm, visualize
from algm_patch.viz import animate, contact_sheet, panels
from algm_patch.viz.figure import draw_panel, draw_tokens
from tests.support.models import build, photo
from tests.support.pictures import legend_of, logits, titles


def test_the_figure(model):
    figure = visualize(model, photo(batch=1), logits, classes=["sky", "road", "tree", "car"])
    assert isinstance(figure, Figure)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    shown = [title.replace(": ", "\n") for title in panels(model, photo(batch=1), logits)]
    assert [axis.get_title() for axis in drawn] == [*shown, "patch tokens after each layer\nof 30"]
    classes, groups = legend_of(figure, "classes:"), legend_of(figure, "patches in a group:")
    assert [text.get_text() for text in classes.get_texts()] == ["sky", "road", "tree", "car"]
    assert len(groups.get_texts()) == 5
    bars: list[Any] = list(drawn[-1].patches)
    heights = [bar.get_height() for bar in bars]
    assert heights == [30] * 5 + [count - 1 for count in model.algm.tokens_per_layer]
    assert figure.texts[0].get_text() in repr(model.algm)  # what is saved, in the words of the print


@pytest.mark.parametrize("channel", [False, True])
def test_the_figure_of_values(model, channel):
    figure = visualize(model, photo(batch=1), lambda model, images: logits(model, images).mean(1, keepdim=channel))
    drawn = {axis.get_title().split("\n")[0]: axis for axis in figure.axes}
    before, after, difference = (
        drawn[title].images[0].get_clim() for title in ("prediction, unpatched", "prediction, merging", "difference")
    )
    assert before == after
    assert difference == pytest.approx((0, before[1] - before[0]))
    assert not [text for text in figure.texts if text.get_text() == "classes:"]


def test_panels_on_axes_of_ones_own(model):
    axes = Figure().subplots(1, 2)
    shown = panels(model, photo(batch=1))
    draw_panel(axes[0], shown["image"], "mine")
    draw_tokens(axes[1], model.algm)
    assert axes[0].get_title() == "mine"
    np.testing.assert_array_equal(axes[0].images[0].get_array(), shown["image"])


def test_a_contact_sheet_of_a_folder(model, folder):
    figure = contact_sheet(model, folder)
    names = [title.split("\n") for title in titles(figure)]
    assert [name for name, _ in names] == ["a.jpg", "b.png"]
    assert names[1][1] == f"{model.algm.tokens_per_layer[-1] - 1} of 30 patches"
    assert len(titles(contact_sheet(model, [astronaut(), folder / "a.jpg"]))) == 2
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    assert titles(contact_sheet(model, [astronaut()])) == ["1\nnothing merged"]


def test_a_contact_sheet_draws_every_image(model, folder):
    """Images of the same name and number of tokens are drawn too."""
    (folder / "other").mkdir()
    turned = Image.open(folder / "a.jpg").rotate(180)
    turned.save(folder / "other" / "a.jpg")
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    figure = contact_sheet(model, [folder / "a.jpg", folder / "other" / "a.jpg", folder / "a.jpg"])
    assert titles(figure) == 3 * ["a.jpg\nnothing merged"]
    arrays: list[Any] = [axis.images[0].get_array() for axis in figure.axes[:3]]
    first, second, third = arrays
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, third)


NOTHING = {
    "thresholds above all": {"tau": 1.05, "gbm_layers": []},
    "thresholds that no window reaches": {"tau": 1.0, "gbm_layers": []},
    "no stages": {"clap_layer": None, "gbm_layers": []},
    "no windows": {"window": (7, 7), "gbm_layers": []},
    "no windows, then GBM": {"window": (7, 7), "gbm_layers": [3], "gbm_tau": 0.0},
}


@pytest.mark.parametrize("settings", NOTHING.values(), ids=NOTHING)
def test_every_picture_of_an_image_in_which_nothing_merges(folder, narrow, settings):
    model = apply_algm(build("ViT", dynamic_img_size=True), **settings)
    assert animate(model, folder, folder / "film.gif").exists()
    told = [title.split("\n")[1] for title in titles(contact_sheet(model, folder))]
    assert len(told) == 2
    assert (told == 2 * ["nothing merged"]) == (settings["gbm_layers"] == [])
    assert titles(visualize(model, Image.open(folder / "a.jpg")))[0] == "image"


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (photo(batch=2), ValueError, r"one image, .*got \[2, 3, 96, 80\]"),
        (torch.randn(96, 80), ValueError, r"got \[96, 80\]"),
        ("a.png", TypeError, "got <class 'str'>"),
    ],
)
def test_errors(model, image, error, message):
    with pytest.raises(error, match=message):
        visualize(model, image)


def test_an_unpatched_model():
    with pytest.raises(ValueError, match="not patched"):
        visualize(build("ViT"), photo(batch=1))
