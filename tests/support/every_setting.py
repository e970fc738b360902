"""One model under every setting, alone and in the combinations that could go wrong."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from algm_patch import apply_algm, calibrate
from tests.support.models import build, photo

IMAGES = photo(batch=2)
PREFIX, PATCHES = 1, 30
# CLAP in the first of three blocks, GBM in the second: the third runs on what both left.
BASE: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "tau": 0.5}
SETTINGS: dict[str, Any] = {
    "tau auto": {"tau": "auto"},
    "tau 0.5": {},
    "tau above 1": {"tau": 1.05},
    "tau paper": {"tau": "paper"},
    "calibrated": {"tau": "auto", "calibrated": True},
    "calibrated, for GBM too": {"tau": "auto", "gbm_tau": "tau", "calibrated": True},
    "calibrated as published": {"tau": "paper", "calibrated": True},
    "clap_layer None": {"clap_layer": None},
    "gbm_layers []": {"gbm_layers": []},
    "no stage": {"clap_layer": None, "gbm_layers": []},
    "gbm_tau a number": {"gbm_tau": 0.6},
    "gbm_tau above 1": {"gbm_tau": 1.05},
    "gbm_tau a list": {"gbm_layers": [2, 3], "gbm_tau": [0.6, 0.7]},
    "gbm_tau tau": {"gbm_tau": "tau"},
    "gbm_tau tau, auto": {"tau": "auto", "gbm_tau": "tau"},
    "gbm_tau tau, paper": {"tau": "paper", "gbm_tau": "tau"},
    "gbm_tau tau, above 1": {"tau": 1.05, "gbm_tau": "tau"},
    "gbm_tau tau, one block": {"clap_layer": 2, "tau": "auto", "gbm_tau": "tau"},
    "gbm_tau tau, one block, calibrated": {"clap_layer": 2, "tau": "auto", "gbm_tau": "tau", "calibrated": True},
    "gbm_tau tau, no window": {"tau": "auto", "gbm_tau": "tau", "window": (9, 9)},
    "gbm_tau tau, without CLAP": {"clap_layer": None, "gbm_tau": "tau"},
    "window": {"window": (3, 2)},
    "window beyond the grid": {"tau": "auto", "window": (9, 9)},
    "proportional_attention": {"proportional_attention": False},
    "restore": {"restore": False},
    "compare": {"compare": "key"},
    "matching": {"matching": "mutual"},
    "matching by keys": {"matching": "mutual", "compare": "key", "gbm_layers": [1, 2, 3], "gbm_tau": 0.3},
    "size_aware": {"size_aware": False},
    "reduce": {"reduce": "pick"},
    "place": {"place": "after_mlp"},
    "batch image": {"batch": "image"},
    "batch min": {"batch": "min"},
    "merge_to": {"tau": "auto", "merge_to": 0.6},
    "merge_to a list": {"tau": "auto", "merge_to": [0.7, 14]},
}
# Nothing can merge: the model is bitwise the unpatched one.
NOTHING = ("no stage", "gbm_tau tau, above 1", "gbm_tau tau, no window")


@cache
def unpatched():
    return build("ViT", depth=3)


def patched(name):
    """Return the model with these settings, in eval mode."""
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
    """Assert equality to the last bit; only to rounding if a compiler has put the operations in another order."""
    if is_compiled(model):
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


def traces(model):
    return {
        name: (type(part), sorted(vars(part).keys() - {"_compiled_call_impl"})) for name, part in model.named_modules()
    }
