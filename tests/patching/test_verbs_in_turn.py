"""Verbs after each other, on compiled models, and on models that are not patched."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch

from algm_patch import apply_algm, calibrate, remove_algm, tune, visualize
from algm_patch.viz import animate, contact_sheet, panels
from tests.support.every_setting import IMAGES, patched, tokens, traces, unpatched
from tests.support.verbs import VERBS, as_pixels, two_trials

slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sys.modules[tune.__module__], "measure_all", two_trials)
    monkeypatch.setattr("algm_patch.viz.film.WIDTH", 96)


AFTER = {
    "train step": VERBS,
    "calibrate": VERBS,
    "tune": VERBS,
    "panels": VERBS,
    "save and load": ("calibrate", "tune", "remove"),
    "deepcopy": ("train step", "tune", "remove"),
    "export": ("forward", "train step", "calibrate", "tune", "panels", "compile", "remove"),
    "compile": VERBS.keys() - {"export"},
}
EVERY_RUN = {("compile", "calibrate"), ("compile", "tune"), ("compile", "panels")}


def sequence(first, second):
    makes_a_graph = {first, second} & {"compile", "export"} and (first, second) not in EVERY_RUN
    return pytest.param(first, second, id=f"{first} | {second}", marks=[slow] if makes_a_graph else [])


@pytest.mark.parametrize(
    ("first", "second"), [sequence(first, second) for first, seconds in AFTER.items() for second in sorted(seconds)]
)
def test_one_verb_after_the_other(first, second, tmp_path):
    model = patched("gbm_tau tau, auto")
    VERBS[first](model, tmp_path)
    VERBS[second](model, tmp_path)
    if second != "remove":
        VERBS["forward"](model, tmp_path)


def test_what_needs_a_patched_model_says_so_when_it_no_longer_is(tmp_path):
    model, film = remove_algm(patched("tau 0.5")), tmp_path / "film.gif"
    for verb in (calibrate, panels, visualize, contact_sheet, lambda model, images: animate(model, images, film)):
        with pytest.raises(ValueError, match="VisionTransformer is not patched"):
            verb(model, IMAGES if verb is calibrate else IMAGES[:1])
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_decoder_refuses_to_unmerge_after_it():
    model = copy.deepcopy(unpatched())
    with pytest.raises(ValueError, match=r"unmerge_at='after_head'.* no decoder"):
        apply_algm(model, gbm_layers=[2], unmerge_at="after_head")
    assert traces(model) == traces(unpatched())


@pytest.mark.parametrize("wrapped", [False, True], ids=["model.compile()", "torch.compile(model)"])
def test_a_compiled_model_is_measured_and_stays_compiled(wrapped):
    torch._dynamo.reset()
    model = compiled = patched("tau auto")
    graph: dict[str, Any] = {"backend": "eager", "fullgraph": True}
    if wrapped:
        compiled = torch.compile(model, **graph)
    else:
        model.compile(**graph)
    calls = vars(compiled).get("forward"), compiled._compiled_call_impl
    image, other = IMAGES[:1], copy.deepcopy(model)
    tokens(compiled, image)
    assert calibrate(compiled, IMAGES) == calibrate(other, IMAGES)
    torch.testing.assert_close(tokens(compiled, image), tokens(other, image))
    settings = tune(compiled, IMAGES, keep=1e-6, predict=as_pixels)
    assert settings == tune(other, IMAGES, keep=1e-6, predict=as_pixels)
    torch.testing.assert_close(tokens(compiled, image), tokens(other, image))
    assert (vars(compiled).get("forward"), compiled._compiled_call_impl) == calls
