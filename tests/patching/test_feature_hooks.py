"""Hooks on blocks that keep activations, as MiDaS, DPT and timm take features; hooks that write or replace them."""

from typing import Any

import pytest
import timm
import torch
from timm.models._features import FeatureHookNet

from algm_patch import apply_algm
from tests.support.batches import unlike
from tests.support.loops import at_every_block
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
MODES = (torch.no_grad, torch.inference_mode)


def keeping(activations, name):
    def hook(module, inputs, output):
        activations[name] = output

    return hook


def replace(module, inputs, output):
    return output + torch.linspace(0, 1, output.shape[1])[:, None]


def write(module, inputs, output):
    output[:, 3] = 0


def taken(model, images, others=()):
    """Return what hooks on the second and fourth block keep, and what the model returns."""
    activations: dict[int, torch.Tensor] = {}
    hooks = [model.blocks[layer].register_forward_hook(hook) for layer, hook in others]
    hooks += [model.blocks[layer].register_forward_hook(keeping(activations, layer)) for layer in (1, 3)]
    output = model(images)
    for hook in hooks:
        hook.remove()
    return activations[1], activations[3], output


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("others", [(), ((1, replace),), ((1, write), (2, replace)), ((3, write),)])
@pytest.mark.parametrize("images", [photo(), unlike(photo())], ids=["alike", "unlike"])
@pytest.mark.parametrize("restore", [True, False])
def test_hooks_keep_what_full_grids_at_once_give_them(restore, images, others, mode):
    """To rounding if grids are restored: the next block takes their means."""
    model = apply_algm(build("ViT"), **SETTINGS, restore=restore)
    with mode():
        with at_every_block():
            expected = taken(model, images, others)
        found = taken(model, images, others)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is torch.Tensor
        assert torch.equal(one, other) if not restore else torch.allclose(one, other, atol=1e-5)


@torch.no_grad()
def test_tokens_stay_merged_behind_a_hook_that_only_keeps_its_block():
    model = apply_algm(build("ViT"), **SETTINGS)
    taken(model, photo())
    assert [block.handed for block in model.algm.last_pass.blocks.values()] == [False, False, True, False, True]
    taken(model, photo(), [(1, replace)])
    assert [block.handed for block in model.algm.last_pass.blocks.values()] == [False, False, False, False, True]


@torch.no_grad()
@pytest.mark.parametrize("cls", ["getter", "hook"])
def test_timms_feature_networks(cls):
    options: dict[str, Any] = {"img_size": (96, 80), "depth": 6, "features_only": True, "out_indices": (1, 3)}
    model = timm.create_model("vit_tiny_patch16_224", **options, feature_cls=cls).eval()
    assert isinstance(model, FeatureHookNet) == (cls == "hook")
    expected = model(photo())
    apply_algm(model, **SETTINGS)
    found = model(photo())
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert not torch.equal(found[0], expected[0])
    assert model.algm.tokens_per_layer[3] < 31
    model.algm.update(clap_layer=None, gbm_layers=[])
    for one, other in zip(model(photo()), expected, strict=True):
        assert torch.equal(one, other)
