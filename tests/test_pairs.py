"""Every setting with every verb, and verbs after each other: it works, or is refused by the name of the setting."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from dataclasses import fields
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from models import build, photo
from PIL import Image


from algm_patch import (
    Settings,
    animate,
    apply_algm,
    calibrate,
    contact_sheet,
    load_settings,
    panels,
    remove_algm,
    tune,
    visualize,
)
from algm_patch.search import Candidate

IMAGES = photo(batch=2)
PREFIX, PATCHES = 1, 30
# CLAP in the first of three blocks, GBM in the second: the third runs on what both left.
BASE = {"clap_layer": 1, "gbm_layers": [2], "tau": 0.5}
SETTINGS = {
    "tau auto": {"tau": "auto"},
    "tau 0.5": {},
    "tau above 1": {"tau": 2.0},
    "tau paper": {"tau": "paper"},
    "calibrated": {"tau": "auto", "calibrated": True},
    "calibrated, for GBM too": {"tau": "auto", "gbm_tau": "tau", "calibrated": True},
    "calibrated as published": {"tau": "paper", "calibrated": True},
    "clap_layer None": {"clap_layer": None},
    "gbm_layers []": {"gbm_layers": []},
    "no stage": {"clap_layer": None, "gbm_layers": []},
    "gbm_tau a number": {"gbm_tau": 0.6},
    "gbm_tau above 1": {"gbm_tau": 1.5},
    "gbm_tau a list": {"gbm_layers": [2, 3], "gbm_tau": [0.6, 0.7]},
    "gbm_tau tau": {"gbm_tau": "tau"},
    "gbm_tau tau, auto": {"tau": "auto", "gbm_tau": "tau"},
    "gbm_tau tau, paper": {"tau": "paper", "gbm_tau": "tau"},
    "gbm_tau tau, above 1": {"tau": 2.0, "gbm_tau": "tau"},
    "gbm_tau tau, one block": {"clap_layer": 2, "tau": "auto", "gbm_tau": "tau"},
    "gbm_tau tau, one block, calibrated": {"clap_layer": 2, "tau": "auto", "gbm_tau": "tau", "calibrated": True},
    "gbm_tau tau, no window": {"tau": "auto", "gbm_tau": "tau", "window": (9, 9)},
    "gbm_tau tau, without CLAP": {"clap_layer": None, "gbm_tau": "tau"},
    "window": {"window": (3, 2)},
    "window beyond the grid": {"tau": "auto", "window": (9, 9)},
    "proportional_attention": {"proportional_attention": False},
    "taps": {"taps": "all"},
    "metric": {"metric": "key"},
    "reduce": {"reduce": "pick"},
    "place": {"place": "after_mlp"},
    "batch image": {"batch": "image"},
    "batch min": {"batch": "min"},
    "tokens": {"tau": "auto", "tokens": 0.6},
    "tokens a list": {"tau": "auto", "tokens": [0.7, 14]},
}
# Nothing can merge: the model is bitwise the unpatched one.
NOTHING = ("no stage", "gbm_tau tau, above 1", "gbm_tau tau, no window")


@cache
def unpatched():
    return build("ViT", depth=3)


def patched(name):
    """The model with these settings, in eval mode."""
    settings = {**BASE, **SETTINGS[name]}
    calibrated = settings.pop("calibrated", False)
    model = apply_algm(copy.deepcopy(unpatched()), **settings)
    if calibrated:
        calibrate(model, IMAGES)
    return model


@torch.no_grad()
def tokens(model, images=IMAGES):
    torch.manual_seed(0)  # for reduce="pick"
    return model(images)


def assert_merged_right(model, output):
    """A class score for each image; the map holds every token once."""
    assert output.shape == (2, 3)
    assert output.isfinite().all()
    algm = model.algm
    assert len(algm.tokens_per_layer) == 3
    assert algm.token_map.labels.shape == (2, PREFIX + PATCHES)
    assert (algm.token_map.sizes.sum(1) == PREFIX + PATCHES).all()
    assert algm.tokens_per_layer[-1] == algm.token_map.sizes.shape[1]


# -- verbs: each does its work on a patched model, checks it, and leaves the model to others


def forward(model, folder):
    expected = copy.deepcopy(model)
    features = model.forward_features(IMAGES).detach()
    assert features.shape == (2, PREFIX + PATCHES, 64)
    assert torch.equal(model.algm.unmerge(model.algm.token_map.take(features)), features)
    output = tokens(model)
    assert_merged_right(model, output)
    assert torch.equal(output, tokens(expected))


def train_step(model, folder):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    output = model(IMAGES)
    output.square().sum().backward()
    assert_merged_right(model, output)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.any() for name, gradient in gradients.items() if name.endswith("weight"))
    optimizer.step()
    model.zero_grad()
    assert_merged_right(model.eval(), tokens(model))


def calibrated(model, folder):
    value = calibrate(model, IMAGES)
    algm = model.algm
    assert algm.calibrated_tau == value
    assert f"calibrated: {value:.4f}" in repr(algm)
    tokens(model)
    assert f"-> {algm.tokens_per_layer[algm.clap_layer - 1]}, tau {value:.4f}" in repr(algm) or algm.gbm_layers


def tuned(model, folder):
    before = model.algm.settings
    settings = tune(model, IMAGES, keep=1e-6, budget="60s")
    assert model.algm.settings == settings
    assert settings.tokens is None
    assert not settings.calibrated
    assert len(settings.measured.trials) == 2
    assert str(settings).count("*") == 1
    for name in ("window", "proportional_attention", "taps", "reduce", "place", "batch"):
        assert settings[name] == before[name]
    assert_merged_right(model, tokens(model))


def saved(model, folder):
    model.algm.settings.save(folder / "settings.json")
    other = apply_algm(copy.deepcopy(unpatched()), **load_settings(folder / "settings.json"))
    other.load_state_dict(model.state_dict())
    assert other.algm.settings == model.algm.settings
    assert other.algm.calibrated_tau == model.algm.calibrated_tau
    assert torch.equal(tokens(other), tokens(model))


def shown(model, folder):
    settings = model.algm.settings
    assert isinstance(visualize(IMAGES[0], model), Figure)
    assert model.algm.settings == settings


def panelled(model, folder):
    settings = model.algm.settings
    found = panels(IMAGES[0], model, lambda model, images: model.forward_features(images)[:, PREFIX:, :5].mT.unflatten(2, (6, 5)))
    assert next(iter(found)) == "image"
    assert [panel.shape[:2] for panel in found.values()] == [(96, 80)] * len(found)
    assert [title.split(",")[0] for title in list(found)[-3:-1]] == ["prediction", "prediction"]
    assert model.algm.settings == settings


def animated(model, folder):
    path = animate(list(IMAGES), model, folder / "film.gif")
    assert Image.open(path).n_frames in (1, 2)  # equal frames are one


def sheet(model, folder):
    figure = contact_sheet(list(IMAGES), model)
    assert sum(bool(axes.get_images()) for axes in figure.axes) == 2


def compiled(model, folder):
    torch._dynamo.reset()
    expected = tokens(model)
    model.compile(backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(tokens(model), expected)


def exported(model, folder):
    expected = tokens(model)
    program = torch.export.export(model, (IMAGES,), strict=False)
    torch.testing.assert_close(program.module()(IMAGES), expected)


def printed(model, folder):
    algm = model.algm
    for text in (repr(algm), str(algm.settings)):
        assert text
    tokens(model)
    assert "tokens after each layer: " + " ".join(map(str, algm.tokens_per_layer)) in repr(algm)
    assert eval(repr(Settings()), {"Settings": Settings}) == Settings()


def carded(model, folder):
    assert "ALGM on VisionTransformer" in model.algm._repr_html_()
    tokens(model)
    assert "GFLOPs" in model.algm._repr_html_()


def copied(model, folder):
    expected = tokens(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.algm.settings == model.algm.settings
        assert other.algm.calibrated_tau == model.algm.calibrated_tau
        assert torch.equal(tokens(other), expected)
        remove_algm(other)
    assert torch.equal(tokens(model), expected)


def removed(model, folder):
    weights = copy.deepcopy(unpatched())
    weights.load_state_dict(model.state_dict())
    remove_algm(model)
    assert torch.equal(tokens(model), tokens(weights))
    assert traces(model) == traces(weights)


VERBS = {
    "forward": forward,
    "train step": train_step,
    "calibrate": calibrated,
    "tune": tuned,
    "save and load": saved,
    "visualize": shown,
    "panels": panelled,
    "animate": animated,
    "contact_sheet": sheet,
    "compile": compiled,
    "export": exported,
    "print": printed,
    "card": carded,
    "deepcopy": copied,
    "remove": removed,
}


def traces(model):
    return {name: (type(part), sorted(vars(part))) for name, part in model.named_modules()}


def two_trials(bench):
    """Instead of a search: one trial without GBM, which costs less, and one with."""
    for candidate in (Candidate(1, 19, (), 8, "token"), Candidate(1, 2, (2,), 4, "token")):
        bench.measure(candidate, None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sys.modules[tune.__module__], "search", two_trials)
    torch.set_num_threads(1)


REFUSED = {}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore:tau='paper' merges nothing:UserWarning")
def test_every_setting_with_every_verb(name, verb, tmp_path):
    VERBS[verb](patched(name), tmp_path)
