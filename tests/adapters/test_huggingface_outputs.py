"""Patched ViTs of transformers give out feature maps and hidden states on the full grid."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoBackbone, AutoModel

from algm_patch import apply_algm, remove_algm
from tests.support.contract import SETTINGS, permute_in_place_of_clap, token_map_after
from tests.support.counting import record_unmerges
from tests.support.models_huggingface import FAMILIES, build, inputs, photo

BACKBONES = {
    "Dinov2Backbone": "DINOv2",
    "Dinov2WithRegistersBackbone": "DINOv2, registers",
    "DINOv3ViTBackbone": "DINOv3",
    "BeitBackbone": "BEiT, bias per layer",
    "PixioBackbone": "Pixio",
    "Sapiens2Backbone": "Sapiens 2",
}
BACKBONES = {name: family for name, family in BACKBONES.items() if hasattr(transformers, name)}


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("stages", [["stage5"], ["stage1", "stage4"], ["stem", "stage2", "stage3", "stage5"]])
def test_backbones(name, stages, monkeypatch):
    model = build(BACKBONES[name], name, out_features=stages)
    expected = model(photo()).feature_maps
    apply_algm(model, **SETTINGS, restore=False)
    found = model(photo()).feature_maps
    assert [x.shape for x in found] == [x.shape for x in expected] == [(2, 64, 6, 5)] * len(stages)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30
    for stage, x in zip(stages, found, strict=True):
        layer = 0 if stage == "stem" else int(stage[-1])
        prefix = model.algm.token_map.labels.shape[1] - 30
        groups = token_map_after(model, max(layer - 1, 0))  # each patch has a copy of its group's token
        x = nn.functional.pad(x.flatten(2).mT, (0, 0, prefix, 0))
        assert torch.equal(groups.unmerge(groups.take(x)), x) == (layer > 0)
    permute_in_place_of_clap(monkeypatch)
    model.algm.gbm_layers = []
    for x, y in zip(model(photo()).feature_maps, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states(family):
    model, image = build(family), photo()
    plain = model(**inputs(family, image), output_hidden_states=True).hidden_states
    apply_algm(model, **SETTINGS)
    expected = model(**inputs(family, image))
    found = model(**inputs(family, image), output_hidden_states=True)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)  # means of restored grids, rounded
    assert [x.shape for x in found.hidden_states] == [x.shape for x in plain]
    assert len(found.hidden_states) == 6
    assert torch.equal(found.hidden_states[0], plain[0])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_patching_follows_a_call_for_hidden_states(family):
    """In some releases, that call leaves forwards on the layers and their attention."""
    model, image = build(family), photo()
    expected = model(**inputs(family, image)).last_hidden_state
    merged = apply_algm(copy.deepcopy(model), **SETTINGS)(**inputs(family, image)).last_hidden_state
    classes = [type(module) for module in model.modules()]
    ask = {"output_hidden_states": True, "output_attentions": "eager" in family}
    model(**inputs(family, image), **ask)
    apply_algm(model, **SETTINGS)
    assert torch.equal(model(**inputs(family, image)).last_hidden_state, merged)
    found = model(**inputs(family, image), output_hidden_states=True)
    torch.testing.assert_close(found.last_hidden_state, merged)
    assert {x.shape[1] for x in found.hidden_states} == {expected.shape[1]}
    assert torch.equal(copy.deepcopy(model)(**inputs(family, image)).last_hidden_state, merged)
    model.algm.compare = "key"
    model(**inputs(family, image))
    remove_algm(model)
    assert torch.equal(model(**inputs(family, image)).last_hidden_state, expected)
    assert [type(module) for module in model.modules()] == classes
    assert not any("algm" in name for module in model.modules() for name in vars(module))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_read_is_unmerged(family, monkeypatch):
    model = apply_algm(build(family), **SETTINGS)
    unmerged = record_unmerges(monkeypatch)
    model(**inputs(family, photo()))
    # Encoders with a shared bias of their own resize it to the length of each layer's input, which must be whole then.
    resizes = hasattr(getattr(model, "encoder", None), "relative_position_bias") and FAMILIES[family].call
    assert len(unmerged) == (5 if resizes else 1)


@torch.no_grad()
def test_auto_classes():
    model = apply_algm(AutoModel.from_config(FAMILIES["DINOv2"].config()).eval(), **SETTINGS)
    assert model(photo()).last_hidden_state.shape == (2, 31, 64)
    backbone = apply_algm(AutoBackbone.from_config(FAMILIES["DINOv2"].config(out_indices=[1, 4])).eval(), **SETTINGS)
    assert [x.shape for x in backbone(photo()).feature_maps] == [(2, 64, 6, 5)] * 2
