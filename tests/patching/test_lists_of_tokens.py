"""Blocks that are given lists of tokens, as DINOv3's own code gives them."""

from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import Adapter, apply_algm, register
from algm_patch.adapters import registry
from tests.support.models import build, photo


class Block(nn.Module):
    """A block that takes tokens, or a list of them, with a bias for each."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def attention(self, x, bias):
        query, key, value = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(query, key, value, bias)[:, 0]

    def forward(self, x, bias=None):
        if isinstance(x, list):
            return [self.forward(one, own) for one, own in zip(x, bias or [None] * len(x), strict=True)]
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class Network(nn.Module):
    def __init__(self, lists, dim=32):
        super().__init__()
        self.lists, self.stem = lists, nn.Conv2d(3, dim, 8, 8)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(4))

    def forward(self, *images, by_name=False):
        tokens = [self.stem(image).flatten(2).mT for image in images]
        biases = [torch.arange(x.shape[1]).sub(torch.arange(x.shape[1])[:, None]).abs() / -10 for x in tokens]
        for block in self.blocks:
            if not self.lists:
                tokens = [block(tokens[0], biases[0])]
            else:
                tokens = block(tokens, bias=biases) if by_name else block(tokens, biases)
                assert isinstance(tokens, list)
        return tokens[0]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "ADAPTERS", dict(registry.ADAPTERS))

    @register(f"{__name__}.Block.forward")
    class Halves(Adapter):
        projection = "stem"

        @staticmethod
        def attention_half(block, x, tokens, bias=None):
            return x + block.attention(block.norm1(x), tokens.attention_mask(bias))

        @staticmethod
        def mlp_half(block, x):
            return x + block.mlp(block.norm2(x))


@torch.no_grad()
@pytest.mark.parametrize("by_name", [False, True])
def test_a_list_of_one_is_what_it_holds(by_name):
    model: Any = Network(lists=False)
    image = torch.rand(2, 3, 48, 40)
    apply_algm(model, gbm_layers=[3], tau=0.5)
    expected = model(image)
    assert model.algm.tokens_per_layer[-1] < 30
    model.lists = True
    assert torch.equal(model(image, by_name=by_name), expected)


@torch.no_grad()
def test_a_list_of_several_is_refused_in_words():
    model, image = Network(lists=True), torch.rand(1, 3, 48, 40)
    apply_algm(model, gbm_layers=[3])
    with pytest.raises(ValueError, match=r"Block was given a list of 2 tensors, .* Run them one after the other"):
        model(image, image)


@torch.no_grad()
def test_a_tuple_of_tokens_is_refused_in_words():
    """As a layer that shrinks the grid is given it: its queries, and what they look at."""
    model = apply_algm(build("ViT"))
    x = model._pos_embed(model.patch_embed(photo()))
    with pytest.raises(ValueError, match=r"Block was given a tuple of 2 as its tokens, .* one batch of tokens"):
        model.blocks[0]((x, x))
