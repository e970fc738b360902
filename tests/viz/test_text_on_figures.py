"""Figures of hostile images: no text meets text or a panel, none is cut, and what they tell is what is printed."""

import re

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from algm_patch import apply_algm, visualize
from algm_patch.viz import contact_sheet, pareto
from algm_patch.viz.figure import columns_for
from algm_patch.viz.text import shortened, text_width, wrapped
from tests.support.models import build, photo
from tests.support.pictures import logits, titles
from tests.support.records import TRIALS, settings_on
from tests.support.texts import check_text, overlap

IMAGES = {
    "square": astronaut(),
    "portrait": astronaut()[:, 200:260],
    "panorama": astronaut()[100:140],
    "a strip": astronaut()[:8],
    "tiny": astronaut()[:3, :3],
    "constant": np.full((64, 64, 3), 255, np.uint8),
}
CLASSES = {
    "none": [],
    "four": ["sky", "road", "tree", "car"],
    "many": [f"class {number} of a hundred and fifty" for number in range(150)],
    "with signs": ["$a$", "b_{$", "\\frac", "<i>"],
    "long": ["sky" * 60, "road", "tree", "car"],
}


def values(model, images):
    return logits(model, images)[:, :1]


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("predict", [None, logits, values])
def test_a_figure_of_any_image(model, image, predict):
    check_text(visualize(model, image, predict))


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_a_figure_of_any_classes(model, classes):
    check_text(visualize(model, photo(batch=1), logits, classes=classes))


@pytest.mark.parametrize("layers", [(), (2,), (1, 2, 3, 4, 5), tuple(range(1, 13)), tuple(range(1, 25))], ids=len)
def test_a_figure_of_many_layers_and_merges_has_columns_that_align(layers):
    model = apply_algm(build("ViT", depth=max(layers, default=12)), clap_layer=1, gbm_layers=layers, tau=0.5)
    figure = visualize(model, photo(batch=1), logits)
    check_text(figure)
    panels = [axes.get_position() for axes in figure.axes if axes.get_title()]
    assert len({round(box.x0, 6) for box in panels}) <= 7
    assert max(box.x1 for box in panels) == pytest.approx(
        panels[-1].x1
    )  # the chart takes what is left: no cell is empty
    before, after, difference = panels[-4:-1]
    assert before.y0 == pytest.approx(after.y0) == pytest.approx(difference.y0)
    chart = [axes for axes in figure.axes if axes.get_title()][-1]
    assert chart.get_xticks()[0] == 1


def test_a_figure_of_a_large_grid():
    model = apply_algm(build("ViT", grid=(48, 40), depth=2), clap_layer=1, gbm_layers=[2], tau=0.5)
    figure = visualize(model, torch.randn(3, 768, 640))
    check_text(figure)


@pytest.mark.parametrize("columns", [1, 3, 4, 20])
@pytest.mark.parametrize("count", [1, 5])
def test_a_contact_sheet_of_any_images(model, tmp_path, count, columns):
    images = [*IMAGES.values()][:count]
    check_text(contact_sheet(model, images, columns))


def test_a_contact_sheet_of_long_names_and_of_signs(model, tmp_path):
    from PIL import Image

    for name in ("a" * 100, "$x_{$", "b $c$"):
        Image.fromarray(astronaut()[:96, :80]).save(tmp_path / f"{name}.png")
    check_text(contact_sheet(model, tmp_path))


def test_picture_and_print_tell_the_same_counts(model):
    figure = visualize(model, astronaut())
    told = [int(count) for title in titles(figure) for count in re.findall(r"(\d+) of 30 patches", title)]
    printed = re.search(r"patch tokens after each layer: ([\d ]+)", repr(model.algm))
    assert printed is not None
    layers = [int(count) for count in printed[1].split()]
    assert told == [layers[0], layers[2]]
    merges = re.findall(r"(?:CLAP|GBM) (\d+) -> (\d+)", repr(model.algm))
    assert [(int(before), int(after)) for before, after in merges] == [(30, told[0]), (told[0], told[1])]
    assert titles(contact_sheet(model, [astronaut()])) == [f"1\n{told[1]} of 30 patches"]


@pytest.mark.parametrize("count", range(4, 30))
def test_predictions_stand_beside_each_other(count):
    columns = columns_for(count, 3)
    assert 3 <= columns <= 7
    assert len({place // columns for place in range(count - 3, count)}) == 1


def test_the_legend_of_a_front_names_what_is_drawn_and_covers_nothing():
    for trials in (TRIALS, TRIALS[:1], (TRIALS[0], TRIALS[1], TRIALS[1])):
        figure = pareto(settings_on(build("ViT"), trials=trials))
        check_text(figure)
        for axes in figure.axes:
            legend = axes.get_legend()
            assert legend is not None
            assert not overlap(legend.get_window_extent(), axes.get_window_extent())
            labels = [text.get_text() for text in legend.get_texts()]
            drawn = {line.get_label() for line in axes.lines} | {each.get_label() for each in axes.collections}
            assert set(labels) == {label for label in drawn if not str(label).startswith("_")}


def test_lines_fit():
    assert shortened("a name", 5, 9) == "a name"
    short = shortened("a" * 100 + "b" * 100, 1.5, 9)
    assert text_width(short, 9) <= 1.5 < text_width(short + "a", 9)
    assert re.fullmatch("a+…b+", short)
    lines = wrapped("several words " * 30, 2, 9)
    assert " ".join(lines).split() == ("several words " * 30).split()
    assert all(text_width(line, 9) <= 2 for line in lines)
