"""The names that users import: ten at the top, the rest in their wings; and where version 0.1 had them."""

import subprocess
import sys
from importlib import import_module

import pytest

import algm_patch
from algm_patch import Algm, apply_algm
from tests.support.deprecation import deprecated
from tests.support.models import build

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
    "adapters": {"Adapter", "LayerTokens", "reads_blocks", "register"},
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
    module = import_module(f"algm_patch.{wing}")
    assert set(module.__all__) == WINGS[wing]
    assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_the_type_of_a_models_handle():
    assert type(apply_algm(build("ViT")).algm) is Algm


@pytest.mark.parametrize(("wing", "name"), MOVED, ids=[name for _, name in MOVED])
def test_names_that_moved_are_found_with_one_warning(wing, name):
    with deprecated(f"algm_patch.{name} is now algm_patch.{wing}.{name}", __file__):
        found = getattr(algm_patch, name)
    assert found is getattr(import_module(f"algm_patch.{wing}"), name)


def test_load_settings_is_settings_load(tmp_path):
    settings = algm_patch.Settings(tau=0.9)
    settings.save(tmp_path / "settings.json")
    with deprecated("algm_patch.load_settings is now Settings.load", __file__):
        load = algm_patch.load_settings
    assert load(tmp_path / "settings.json") == settings


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'patch_model'"):
        _ = algm_patch.patch_model


@pytest.mark.parametrize(("name", "place"), [("DinoBlock", "dinov2"), ("ResidualAttentionBlock", "open_clip")])
def test_adapters_of_the_hub_are_where_they_were(name, place):
    hub = import_module("algm_patch.adapters.hub")
    new = import_module(f"algm_patch.adapters.{place}")
    with deprecated(f"algm_patch.adapters.hub.{name} is now algm_patch.adapters.{place}.{name}", __file__):
        found = getattr(hub, name)
    assert found is getattr(new, name)
