"""The app's runs, its controls, and what it writes as HTML; test_app_page.py visits the page."""

from __future__ import annotations

from typing import Any

import app
import app_html
import numpy as np
import pictures
import pytest
import runs
import torch
from uploads import read

from algm_patch import apply_algm, remove_algm

pytestmark = pytest.mark.usefixtures("small_and_once")
DEFAULT: dict[str, Any] = {
    "clap_layer": 1,
    "gbm_layers": (5,),
    "tau": "auto",
    "window": (2, 2),
    "proportional_attention": True,
}


def test_a_run_shows_groups_predictions_and_costs(model, photograph):
    found = runs.run(model, photograph, DEFAULT)
    assert not hasattr(model, "algm")
    titles = [title.split(":")[0] for title in found.pictures]
    assert titles[2:] == [
        "CLAP in layer 1",
        "GBM in layer 5",
        "prediction, unpatched",
        "prediction, merging",
        "difference",
    ]
    assert all(picture.shape[:2] == (252, 252) for picture in found.pictures.values())
    image = pictures.to_input(read(photograph))
    with torch.no_grad():
        before = model(image)
        apply_algm(model, **DEFAULT)
        after = model(image)
    left = model.algm.tokens_per_layer[-1] - 1
    assert found.patches == (324, left)
    assert f"{left} of 324" in list(found.pictures)[3]
    assert found.gflops == (model.algm.unpatched_gflops, model.algm.gflops)
    remove_algm(model)
    assert all(ms > 0 for ms in found.ms)
    assert found.agreement == pytest.approx(np.corrcoef(before.flatten(), after.flatten())[0, 1])


def test_numbers_say_what_grew_and_what_shrank():
    shown = app_html.numbers(runs.Run({}, (100, 50), (10, 8), (20, 40), 0.98765))
    for said in ("of 100: 2.00 × fewer", "of 10.0: 1.25 × fewer", "of 20: 2.00 × slower", "<strong>0.9877</strong>"):
        assert said in shown


def test_a_caption_tells_the_range_of_the_values_and_grey_where_there_are_none():
    caption, colours = app_html.captioned("similarity", np.array([[0.25, 1.0, np.nan]], np.float32))
    assert caption == "similarity (0.25 to 1.00)"
    assert colours.dtype == np.uint8
    assert [len(set(colour)) == 1 for colour in colours[0].tolist()] == [False, False, True]


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
