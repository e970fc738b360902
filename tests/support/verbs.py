"""The uses of a patched model. Each verb does its work, checks it, and leaves the model to others."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from algm_patch import Settings, apply_algm, calibrate, remove_algm, tune, visualize
from algm_patch.tuning.family import Candidate
from algm_patch.viz import animate, contact_sheet, panels
from tests.support.every_setting import IMAGES, PATCHES, PREFIX, assert_same, tokens, traces, unpatched


def assert_merged_right(model, output):
    """Assert that each image has class scores, and that the map holds every token once."""
    assert output.shape == (2, 3)
    assert output.isfinite().all()
    algm = model.algm
    assert len(algm.tokens_per_layer) == 3
    assert algm.token_map.labels.shape == (2, PREFIX + PATCHES)
    assert (algm.token_map.sizes.sum(1) == PREFIX + PATCHES).all()
    assert algm.tokens_per_layer[-1] == algm.token_map.sizes.shape[1]


def forward(model, folder):
    with model.algm.using(restore=False):
        features = model.forward_features(IMAGES).detach()
    assert features.shape == (2, PREFIX + PATCHES, 64)
    assert torch.equal(model.algm.unmerge(model.algm.token_map.take(features)), features)
    output = tokens(model)
    assert_merged_right(model, output)
    assert_same(model, output, tokens(copy.deepcopy(model)))  # which is not compiled


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
    other = copy.deepcopy(model)
    assert_same(model, tokens(model), tokens(other))
    assert re.search(rf"CLAP 30 -> .*, tau {value:.4f}\n", f"{other.algm}\n")


def tuned(model, folder):
    before = model.algm.settings
    settings = tune(model, IMAGES, keep=1e-6, budget="60s", predict=as_pixels)
    assert model.algm.settings == settings
    assert settings.merge_to is None
    assert settings.calibrated is None
    assert len(settings.record.trials) == 2
    assert str(settings.record).count("*") == 1
    for name in ("window", "proportional_attention", "reduce", "place", "batch"):
        assert settings[name] == before[name]
    other = copy.deepcopy(model)
    assert_same(model, tokens(model), tokens(other))
    assert_merged_right(other, tokens(other))


def saved(model, folder):
    model.algm.settings.save(folder / "settings.json")
    other = apply_algm(copy.deepcopy(unpatched()), **Settings.load(folder / "settings.json"))
    other.load_state_dict(model.state_dict())
    assert other.algm.settings == model.algm.settings
    assert other.algm.calibrated_tau == model.algm.calibrated_tau
    assert_same(model, tokens(other), tokens(model))


def shown(model, folder):
    settings = model.algm.settings
    assert isinstance(visualize(model, IMAGES[0]), Figure)
    assert model.algm.settings == settings


def panelled(model, folder):
    settings = model.algm.settings
    found = panels(model, IMAGES[0], as_pixels)
    assert next(iter(found)) == "image"
    assert [panel.shape[:2] for panel in found.values()] == [(96, 80)] * len(found)
    assert [title.split(",")[0] for title in list(found)[-3:-1]] == ["prediction", "prediction"]
    assert model.algm.settings == settings


def animated(model, folder):
    path = animate(model, list(IMAGES), folder / "film.gif")
    film: Any = Image.open(path)
    assert film.n_frames in (1, 2)  # equal frames are one


def sheet(model, folder):
    figure = contact_sheet(model, list(IMAGES))
    assert sum(bool(axes.get_images()) for axes in figure.axes) == 2


def compiled(model, folder):
    torch._dynamo.reset()
    expected = tokens(model)
    model.compile(backend="eager", fullgraph=True)
    assert_same(model, tokens(model), expected)


def exported(model, folder):
    expected = tokens(model)
    program = torch.export.export(model, (IMAGES,), strict=False)
    torch.testing.assert_close(program.module()(IMAGES), expected)


def printed(model, folder):
    algm = model.algm
    assert str(algm.settings)
    assert f"tau {algm.tau}" in repr(algm) or algm.clap_layer is None
    tokens(model)
    patches = [count - algm.last_pass.num_prefix_tokens for count in algm.tokens_per_layer]
    assert f"patch tokens after each layer: {' '.join(map(str, patches))}" in repr(algm)


def carded(model, folder):
    assert "ALGM on VisionTransformer" in model.algm._repr_html_()
    tokens(model)
    assert "GFLOPs" in model.algm._repr_html_()


def copied(model, folder):
    expected = tokens(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.algm.settings == model.algm.settings
        assert other.algm.calibrated_tau == model.algm.calibrated_tau
        assert_same(model, tokens(other), expected)
        remove_algm(other)
    assert torch.equal(tokens(model), expected)


def removed(model, folder):
    weights = copy.deepcopy(unpatched())
    weights.load_state_dict(model.state_dict())
    remove_algm(model)
    assert_same(model, tokens(model), tokens(weights))
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


def as_pixels(model, images):
    """Return the logits of a model that classifies images, as a map [B, 3, 2, 2]."""
    return model(images)[..., None, None].expand(-1, -1, 2, 2)


def two_trials(bench, _):
    """Measure, in place of a search, one trial without GBM, which costs less, and one with it."""
    for candidate in (Candidate(950, (), "token"), Candidate(100, ((2, 200),), "token")):
        bench.verify(bench.look(candidate).settings)
