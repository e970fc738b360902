"""An adapter of someone's own that lets no sizes weigh in attention is found out at the first merge."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import Adapter, apply_algm, register
from algm_patch.adapters import registry
from tests.support.batches import unlike
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
REMEDY = r"Halves, the adapter of Block, did not use the sizes .* model.algm.proportional_attention = False"


class Block(nn.Module):
    """A block whose attention takes a mask, and may leave it unused."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def attn(self, x, mask=None, used=True):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mask = mask if used else None
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Plain blocks, run by a loop that no library knows."""

    def __init__(self, dim=32):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(4))

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x


class Halves(Adapter):
    """Halves of the block; how they let sizes weigh is set by each test."""

    projection = "patches"
    weigh: Any = None

    @staticmethod
    def attention_half(block, x, tokens):
        return x + Halves.weigh(block, block.norm1(x), tokens)

    @staticmethod
    def mlp_half(block, x):
        return x + block.mlp(block.norm2(x))


WITHOUT = {
    "tokens are not asked": lambda block, x, tokens: block.attn(x),
    "the mask goes nowhere": lambda block, x, tokens: block.attn(x, tokens.attention_mask(None), used=False),
    "its form is asked": lambda block, x, tokens: (
        tokens.key_bias is None or tokens.key_bias.shape[-1] == 0 or block.attn(x)
    ),
}
WITH = {
    "the mask": lambda block, x, tokens: block.attn(x, tokens.attention_mask(None)),
    "the bias": lambda block, x, tokens: block.attn(x, tokens.key_bias),
    "the bias, copied": lambda block, x, tokens: block.attn(
        x, None if tokens.key_bias is None else tokens.key_bias.to(x.dtype).expand(-1, 2, x.shape[1], -1)
    ),
    "a bias more": lambda block, x, tokens: block.attn(x, tokens.plus(x.new_zeros(1, 1, 1, 1)).key_bias),
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "ADAPTERS", dict(registry.ADAPTERS))
    register(f"{__name__}.Block.forward")(Halves)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("images", [photo(batch=1), photo(), unlike(photo())], ids=["one", "alike", "unlike"])
@pytest.mark.parametrize("weigh", WITHOUT.values(), ids=WITHOUT)
def test_sizes_that_are_not_used_are_told_of(weigh, images, grad, monkeypatch):
    monkeypatch.setattr(Halves, "weigh", staticmethod(weigh))
    model: Any = apply_algm(ViT().eval(), **SETTINGS)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            with pytest.raises(ValueError, match=REMEDY):
                model(images)
        model.algm.proportional_attention = False
        model(images)
    assert (model.algm.token_map.sizes > 1).any()
    model.algm.proportional_attention = True
    with pytest.raises(ValueError, match=REMEDY):
        model.train()(photo())


@pytest.mark.parametrize("images", [photo(batch=1), photo(), unlike(photo())], ids=["one", "alike", "unlike"])
@pytest.mark.parametrize("weigh", WITH.values(), ids=WITH)
def test_sizes_that_are_used_give_what_they_gave_before_they_were_watched(weigh, images, monkeypatch):
    monkeypatch.setattr(Halves, "weigh", staticmethod(weigh))
    model: Any = apply_algm(ViT().eval(), **SETTINGS)
    first = model(images)
    assert torch.equal(model(images), first)
    with model.algm.using(proportional_attention=False):
        assert not torch.equal(model(images), first)
    others: list[Any] = [copy.deepcopy(model), pickle.loads(pickle.dumps(apply_algm(model, **SETTINGS)))]
    for other in others:
        assert torch.equal(other(images), first)


def test_nothing_merged_needs_no_sizes(monkeypatch):
    monkeypatch.setattr(Halves, "weigh", staticmethod(WITHOUT["tokens are not asked"]))
    model = apply_algm(ViT().eval(), clap_layer=None, gbm_layers=[])
    model(photo())
    apply_algm(model, clap_layer=None, gbm_layers=[4])(photo())  # and behind the last layer there is no attention


def test_the_librarys_own_adapters_are_not_watched():
    model = apply_algm(build("ViT"), **SETTINGS)
    assert {block.algm_part.weighing for block in model.blocks} == {None}
