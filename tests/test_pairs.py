"""Every setting with every verb, and verbs after each other: it works, or is refused by the name of the setting."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from functools import cache

import pytest
import torch
from matplotlib.figure import Figure
from models import build, photo
from PIL import Image

from algm_patch import Settings, apply_algm, calibrate, remove_algm, tune, visualize
from algm_patch.tuning.search import Candidate
from algm_patch.viz import animate, contact_sheet, panels

slow = pytest.mark.slow
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
    "compare": {"compare": "key"},
    "reduce": {"reduce": "pick"},
    "place": {"place": "after_mlp"},
    "batch image": {"batch": "image"},
    "batch min": {"batch": "min"},
    "merge_to": {"tau": "auto", "merge_to": 0.6},
    "merge_to a list": {"tau": "auto", "merge_to": [0.7, 14]},
}
# Nothing can merge: the model is bitwise the unpatched one.
NOTHING = ("no stage", "gbm_tau tau, above 1", "gbm_tau tau, no window")
NO_CLAP = r"calibrate: clap_layer is None"
NO_WINDOW = r"calibrate: no \(9, 9\) window"
DRAWN = "reduce='pick' draws anew at every forward pass"
# The pairs that cannot be, and how that is said. All others work.
REFUSED = {
    ("clap_layer None", "calibrate"): NO_CLAP,
    ("no stage", "calibrate"): NO_CLAP,
    ("gbm_tau tau, without CLAP", "calibrate"): NO_CLAP,
    ("gbm_tau tau, no window", "calibrate"): NO_WINDOW,
    ("window beyond the grid", "calibrate"): NO_WINDOW,
    ("merge_to", "calibrate"): r"calibrate: merge_to=0\.6 keeps fixed counts, which use no threshold",
    ("merge_to a list", "calibrate"): r"calibrate: merge_to=\[0\.7, 14\] keeps fixed counts, which use no threshold",
    ("reduce", "compile"): DRAWN,
    ("reduce", "export"): DRAWN,
}
# A graph takes a second or two. These few are made in every run: what differs most inside of it.
GRAPHS = ("tau 0.5", "calibrated, for GBM too", "gbm_tau tau, one block", "reduce", "merge_to")


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


def is_compiled(model):
    return model._compiled_call_impl is not None


def assert_same(model, found, expected):
    """To the last bit, unless a compiler has put the operations in another order."""
    if is_compiled(model):
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


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
    assert re.search(rf"CLAP 31 -> .*, tau {value:.4f}\n", f"{other.algm}\n")


def tuned(model, folder):
    before = model.algm.settings
    settings = tune(model, IMAGES, keep=1e-6, budget="60s", predict=as_pixels)
    assert model.algm.settings == settings
    assert settings.merge_to is None
    assert not settings.calibrated
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
    assert Image.open(path).n_frames in (1, 2)  # equal frames are one


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
    assert f"tokens after each layer: {' '.join(map(str, algm.tokens_per_layer))}" in repr(algm)


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


def traces(model):
    return {
        name: (type(part), sorted(vars(part).keys() - {"_compiled_call_impl"})) for name, part in model.named_modules()
    }


def as_pixels(model, images):
    """Logits [B, 3, 2, 2] of a model that classifies images."""
    return model(images)[..., None, None].expand(-1, -1, 2, 2)


def two_trials(bench):
    """Instead of a search: one trial without GBM, which costs less, and one with."""
    for candidate in (Candidate(1, 19, (), 8, "token"), Candidate(1, 2, (2,), 4, "token")):
        bench.measure(candidate, None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sys.modules[tune.__module__], "search", two_trials)
    monkeypatch.setattr("algm_patch.films.WIDTH", 96)


def pair(name, verb):
    makes_a_graph = verb in ("compile", "export") and name not in GRAPHS
    return pytest.param(name, verb, id=f"{name} | {verb}", marks=[slow] if makes_a_graph else [])


@pytest.mark.parametrize(("name", "verb"), [pair(name, verb) for name in SETTINGS for verb in VERBS])
@pytest.mark.filterwarnings("ignore:tau='paper' merges nothing:UserWarning")
def test_every_setting_with_every_verb(name, verb, tmp_path):
    model = patched(name)
    if (name, verb) not in REFUSED:
        VERBS[verb](model, tmp_path)
        return
    settings, expected = model.algm.settings, tokens(model)
    with pytest.raises((ValueError, TypeError, torch._dynamo.exc.Unsupported), match=REFUSED[name, verb]):
        VERBS[verb](model, tmp_path)
    assert model.algm.settings == settings
    assert torch.equal(tokens(copy.deepcopy(model)), expected)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore:tau='paper' merges nothing:UserWarning")
def test_settings_merge_or_leave_the_model_bitwise_as_it_was(name):
    model = patched(name)
    output = tokens(model)
    assert torch.equal(output, tokens(unpatched())) == (name in NOTHING)
    assert (model.algm.tokens_per_layer[-1] < PREFIX + PATCHES) == (name not in NOTHING)


# -- verbs after each other

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
    for verb in (calibrate, panels, visualize, contact_sheet, lambda images, model: animate(model, images, film)):
        with pytest.raises(ValueError, match="VisionTransformer is not patched"):
            verb(*((model, IMAGES) if verb is calibrate else (IMAGES[:1], model)))
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
    graph = {"backend": "eager", "fullgraph": True}
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
