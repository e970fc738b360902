"""Training with parts of the model frozen."""

import copy
from typing import Any

import pytest
import torch

from algm_patch import apply_algm
from tests.support.models import build, photo
from tests.support.training import assert_same, gradients

SETTINGS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}


class Segmentor(torch.nn.Module):
    """A trunk and a head with batch norm."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk
        self.head = torch.nn.Sequential(torch.nn.Conv2d(64, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 3, 1))

    def forward(self, image):
        x = self.trunk.forward_features(image)
        return self.head(x[:, 1:].mT.unflatten(2, (6, 5)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_head_trains_on_a_frozen_trunk(mode):
    model: Any = apply_algm(Segmentor(build("ViT").requires_grad_(False)).train(), **SETTINGS)
    image = photo(batch=3)
    getattr(model.trunk, mode)()
    for _ in range(3):
        found = gradients(model, model(image).square().mean())
        assert {name.partition(".")[0] for name in found} == {"head"}
        assert len(found) == 6
    assert model.algm.token_map.sizes.shape[1] < 31
    assert (model.algm.token_map.packing is None) == (mode == "train")
    model.trunk.set_grad_checkpointing()
    again = gradients(model, model(image).square().mean())
    with torch.no_grad():
        features = model.trunk.forward_features(image)
    model.trunk.forward_features = lambda image: features
    expected = gradients(model, model(image).square().mean())
    assert_same(found, expected, atol=0, rtol=0)
    assert_same(again, expected, atol=0, rtol=0)


@pytest.mark.parametrize("frozen", [1, 2, 4], ids="the first {} blocks".format)
def test_what_is_frozen_changes_no_other_gradient(frozen):
    """Freeze blocks before the first merge, up to it, and up to the last."""
    model, image = apply_algm(build("ViT").train(), **SETTINGS), photo()
    expected = gradients(model, model(image).square().sum())
    for parameter in (model.cls_token, model.pos_embed, *model.patch_embed.parameters()):
        parameter.requires_grad = False
    model.blocks[:frozen].requires_grad_(False)
    found = gradients(model, model(image).square().sum())
    blocks = {int(name.split(".")[1]) for name in found if name.startswith("blocks")}
    assert blocks == set(range(frozen, 5))
    assert_same(found, {name: expected[name] for name in found}, atol=0, rtol=0)


def test_frozen_batch_norms_of_a_head_stay_as_they_are():
    model, image = apply_algm(Segmentor(build("ViT")).train(), **SETTINGS), photo(batch=3)
    norm = model.head[1].eval()
    before = copy.deepcopy(norm.state_dict())
    whole = gradients(model, model(image).square().sum())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert model.algm.token_map.packing is None
    norm.requires_grad_(False)
    part = gradients(model, model(image).square().sum())
    assert whole.keys() - part.keys() == {"head.1.weight", "head.1.bias"}
    assert_same(part, {name: whole[name] for name in part}, atol=0, rtol=0)
