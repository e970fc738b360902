"""The paper's layers by network, and one threshold for each layer."""

import json

import pytest
import torch

from algm_patch import Settings, apply_algm, presets
from tests.support.models import build, photo


@pytest.fixture
def model():
    return build("ViT")


def test_one_threshold_for_each_layer(model):
    apply_algm(model, clap_layer=None, gbm_layers=[2, 4], gbm_tau=[0.2, 1.05])
    with torch.no_grad():
        model(photo())
    counts = model.algm.tokens_per_layer
    assert counts[0] == 31 > counts[1] == counts[2] == counts[3]
    assert "layer 2: GBM" in repr(model.algm)
    assert "tau 0.2000" in repr(model.algm)


def test_presets_are_those_of_the_supplement(model):
    assert {name: (preset["clap_layer"], preset["gbm_layers"]) for name, preset in presets.items()} == {
        **{f"segmenter-vit-{size}": (1, (5,)) for size in "tsb"},
        "segmenter-vit-l": (1, (7,)),
        "segvit-vit-l": (1, (12,)),
        "setr-vit-b": (1, (5,)),
        "setr-vit-l": (1, (13,)),
        "eva-vit-g": (1, (11, 21, 31)),
    }
    assert apply_algm(model, **presets["setr-vit-b"], tau=0.9).algm.gbm_layers == (5,)
    with pytest.raises(KeyError, match=r"no preset 'vit'\. There are: segmenter-vit-t"):
        presets["vit"]


def test_what_is_wrong_with_thresholds_for_each_layer():
    for layers, taus in [((3, 5), [0.9]), ((5, 3), [0.9, 0.8])]:
        with pytest.raises(ValueError, match="give one threshold for each layer"):
            Settings(gbm_layers=layers, gbm_tau=taus)
    with pytest.raises(ValueError, match="or above 1, which none reaches; got 'adaptive'"):
        Settings(gbm_layers=[3], gbm_tau=["adaptive"])  # type: ignore[list-item]
    json.loads(Settings(gbm_layers=[3], gbm_tau=[0.5]).metadata()["algm_patch"])
