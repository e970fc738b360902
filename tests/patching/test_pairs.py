"""Every setting with every verb: it works, or is refused by the name of the setting."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from algm_patch import tune
from tests.support.every_setting import NOTHING, PATCHES, PREFIX, SETTINGS, patched, tokens, unpatched
from tests.support.verbs import VERBS, two_trials

slow = pytest.mark.slow
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sys.modules[tune.__module__], "measure_all", two_trials)
    monkeypatch.setattr("algm_patch.viz.film.WIDTH", 96)


def pair(name, verb):
    makes_a_graph = verb in ("compile", "export") and name not in GRAPHS
    return pytest.param(name, verb, id=f"{name} | {verb}", marks=[slow] if makes_a_graph else [])


@pytest.mark.parametrize(("name", "verb"), [pair(name, verb) for name in SETTINGS for verb in VERBS])
@pytest.mark.filterwarnings("ignore:tau='paper' merges no windows:UserWarning")
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
@pytest.mark.filterwarnings("ignore:tau='paper' merges no windows:UserWarning")
def test_settings_merge_or_leave_the_model_bitwise_as_it_was(name):
    model = patched(name)
    output = tokens(model)
    assert torch.equal(output, tokens(unpatched())) == (name in NOTHING)
    assert (model.algm.tokens_per_layer[-1] < PREFIX + PATCHES) == (name not in NOTHING)
