"""The names that users import: ten at the top, the rest in their wings; and where version 0.1 had them."""

import subprocess
import sys

import numpy as np
import pytest

import algm_patch
from algm_patch import Algm, apply_algm, visualize
from algm_patch.viz import animate, contact_sheet, panels
from tests.support.deprecation import deprecated
from tests.support.models import build, photo

PUBLIC = {
    "Adapter",
    "Algm",
    "Settings",
    "apply_algm",
    "calibrate",
    "presets",
    "register",
    "remove_algm",
    "tune",
    "visualize",
}
WINGS = {
    "functional": {"TokenMap", "clap", "gbm"},
    "viz": {"animate", "contact_sheet", "panels", "pareto", "visualize"},
    "adapters": {"Adapter", "LayerTokens", "register"},
}
# By the wing that has them now.
MOVED = [
    *(("functional", name) for name in ("clap", "gbm", "TokenMap")),
    *(("viz", name) for name in ("panels", "contact_sheet", "animate", "pareto")),
    ("adapters", "LayerTokens"),
]


def test_ten_names_at_the_top(recwarn):
    assert set(algm_patch.__all__) - {"__version__"} == PUBLIC
    assert len(PUBLIC) == 10
    assert all(getattr(algm_patch, name).__doc__ or name == "presets" for name in PUBLIC)
    assert isinstance(algm_patch.__version__, str)
    assert not recwarn.list


def test_nothing_is_imported_with_a_star_that_is_not_public():
    script = "from algm_patch import *; print(*(name for name in dir() if not name.startswith('_')))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) == PUBLIC


@pytest.mark.parametrize("wing", WINGS)
def test_the_names_of_a_wing(wing):
    module = getattr(algm_patch, wing)
    assert set(module.__all__) == WINGS[wing]
    assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_the_type_of_a_models_handle():
    assert type(apply_algm(build("ViT")).algm) is Algm


@pytest.mark.parametrize(("wing", "name"), MOVED, ids=[name for _, name in MOVED])
def test_names_that_moved_are_found_with_one_warning(wing, name):
    with deprecated(f"algm_patch.{name} is now algm_patch.{wing}.{name}", __file__):
        found = getattr(algm_patch, name)
    assert found is getattr(getattr(algm_patch, wing), name)


def test_load_settings_is_settings_load(tmp_path):
    settings = algm_patch.Settings(tau=0.9)
    settings.save(tmp_path / "settings.json")
    with deprecated("algm_patch.load_settings is now Settings.load", __file__):
        load = algm_patch.load_settings
    assert load(tmp_path / "settings.json") == settings


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'patch_model'"):
        _ = algm_patch.patch_model


# -- the model comes first; in second place it works, with one warning


@pytest.fixture
def model():
    return apply_algm(build("ViT"), gbm_layers=[3], tau=0.5)


def second(name):
    return f"{name}(..., model, ...) is now {name}(model, ..., ...)"


def test_panels_of_an_image_and_a_model(model):
    expected = panels(model, photo(batch=1))
    with deprecated(second("panels"), __file__):
        found = panels(photo(batch=1), model)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[title], expected[title], equal_nan=True) for title in expected)


def test_visualize_an_image_and_a_model(model):
    expected = visualize(model, photo(batch=1))
    with deprecated(second("visualize"), __file__):
        found = visualize(photo(batch=1), model)
    assert [axes.get_title() for axes in found.axes] == [axes.get_title() for axes in expected.axes]


def test_a_contact_sheet_of_images_and_a_model(model):
    images = list(photo(batch=3))
    expected = contact_sheet(model, images, columns=2)
    with deprecated(second("contact_sheet"), __file__):
        found = contact_sheet(images, model, 2)
    assert [axes.get_title() for axes in found.axes] == [axes.get_title() for axes in expected.axes]


def test_a_film_of_frames_and_a_model(model, tmp_path):
    frames = list(photo(batch=2))
    expected = animate(model, frames, tmp_path / "expected.gif", fps=5).read_bytes()
    with deprecated(second("animate"), __file__):
        found = animate(frames, model, tmp_path / "found.gif", 5)
    assert found.read_bytes() == expected
