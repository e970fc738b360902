"""The model comes first; in second place, as in version 0.1, it works with one warning."""

import matplotlib  # noqa: F401  figures are drawn with it
import numpy as np
import pytest

from algm_patch import apply_algm, visualize
from algm_patch.viz import animate, contact_sheet, panels
from tests.support.deprecation import deprecated
from tests.support.models import build, photo


@pytest.fixture
def model():
    return apply_algm(build("ViT"), gbm_layers=[3], tau=0.5)


def second(name):
    return f"{name}(..., model, ...) is now {name}(model, ..., ...)"


def test_panels_of_an_image_and_a_model(model):
    expected = panels(model, photo(batch=1))
    with deprecated(second("panels"), __file__):
        found = panels(photo(batch=1), model)  # type: ignore[arg-type]
    assert list(found) == list(expected)
    assert all(np.array_equal(found[title], expected[title], equal_nan=True) for title in expected)


def test_visualize_an_image_and_a_model(model):
    expected = visualize(model, photo(batch=1))
    with deprecated(second("visualize"), __file__):
        found = visualize(photo(batch=1), model)  # type: ignore[arg-type]
    assert [axes.get_title() for axes in found.axes] == [axes.get_title() for axes in expected.axes]


def test_a_contact_sheet_of_images_and_a_model(model):
    images = list(photo(batch=3))
    expected = contact_sheet(model, images, columns=2)
    with deprecated(second("contact_sheet"), __file__):
        found = contact_sheet(images, model, 2)  # type: ignore[arg-type]
    assert [axes.get_title() for axes in found.axes] == [axes.get_title() for axes in expected.axes]


def test_a_film_of_frames_and_a_model(model, tmp_path):
    frames = list(photo(batch=2))
    expected = animate(model, frames, tmp_path / "expected.gif", fps=5).read_bytes()
    with deprecated(second("animate"), __file__):
        found = animate(frames, model, tmp_path / "found.gif", 5)  # type: ignore[arg-type]
    assert found.read_bytes() == expected


def test_a_model_by_name_behind_an_image(model, tmp_path):
    expected = panels(model, photo(batch=1))
    with deprecated("panels(..., model=...) is now panels(model, ...)", __file__):
        found = panels(photo(batch=1), model=model)  # type: ignore[arg-type, call-arg, misc]
    assert list(found) == list(expected)
    assert list(panels(model=model, image=photo(batch=1))) == list(expected)
