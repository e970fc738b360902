"""Blocks of one's own, registered."""

from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import Adapter, apply_algm, register, remove_algm
from algm_patch.adapters import reads_blocks, registry
from tests.support import models


class Block(nn.Module):
    """A block with a bias between its tokens, that no library has."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def attention(self, x, bias, mask=None):
        query, key, value = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        mask = bias if mask is None else bias + mask
        return self.proj(nn.functional.scaled_dot_product_attention(query, key, value, mask)[:, 0])

    def forward(self, x, bias):
        x = x + self.attention(self.norm(x), bias)
        return x + self.mlp(self.norm_mlp(x))


class Model(nn.Module):
    """A ViT with a bias between patches, that ends in the full grid."""

    def __init__(self, dim=32, depth=4):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 8, 8)
        self.layers = nn.ModuleList(Block(dim) for _ in range(depth))

    def forward(self, image):
        x = self.stem(image)
        height, width = x.shape[2:]
        x = x.flatten(2).mT
        bias = torch.arange(x.shape[1]).sub(torch.arange(x.shape[1])[:, None]).abs() / -10
        for layer in self.layers:
            x = layer(x, bias=bias)
        return x.mT.unflatten(2, (height, width))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "ADAPTERS", dict(registry.ADAPTERS))
    monkeypatch.setattr(registry, "READERS", dict(registry.READERS))

    @register(f"{__name__}.Block.forward")
    class BlockHalves(Adapter):
        projection = "stem"

        @staticmethod
        def attention_half(block, x, tokens, bias):
            return x + block.attention(block.norm(x), tokens.attention_mask(bias))

        @staticmethod
        def mlp_half(block, x):
            return x + block.mlp(block.norm_mlp(x))


def test_an_unknown_block_is_pointed_to_register():
    with pytest.raises(ValueError, match=r"test_register\.Block computes .* see algm_patch\.register"):
        apply_algm(Model(), gbm_layers=[2])


@torch.no_grad()
@pytest.mark.usefixtures("registered")
def test_a_registered_block_merges():
    torch.manual_seed(0)
    model: Any = Model()
    image = nn.functional.interpolate(torch.randn(2, 3, 3, 3), (56, 40), mode="bilinear")
    expected = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=1.05, gbm_tau=1.05)
    assert torch.equal(model(image), expected)
    model.algm.tau, model.algm.gbm_tau = 0.9, "adaptive"
    assert model(image).shape == expected.shape
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 35
    assert nn.functional.cosine_similarity(model(image), expected).mean() > 0.9
    remove_algm(model)
    assert torch.equal(model(image), expected)


def test_an_older_library_is_refused_with_the_version_to_install(monkeypatch):
    monkeypatch.setattr("algm_patch.adapters.libraries.version", lambda name: {"timm": "1.0.9"}[name])
    with pytest.raises(ValueError, match=r"comes from timm 1\.0\.9, .* Install timm>=1\.0\.17"):
        apply_algm(models.build("ViT"))


@torch.no_grad()
@pytest.mark.usefixtures("registered")
def test_a_method_that_is_registered_later_counts_when_the_model_is_patched_again():
    """A class that was patched is remembered, and with it the methods that were known then."""
    model, image = Model(), torch.rand(1, 3, 48, 48)
    apply_algm(model, gbm_layers=[2])
    model(image)
    assert "a method that ALGM does not know ran" in str(model.algm)
    reads_blocks(f"{__name__}.Model.forward")(lambda model, *args, **kwargs: [len(model.layers) - 1])
    apply_algm(model, gbm_layers=[2])
    model(image)
    assert "a method that ALGM does not know" not in str(model.algm)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "has no attention_half"),
        ({"mlp_half": None}, "has no attention_half"),
        ({"attention_half": None}, "has no mlp_half"),
    ],
)
def test_an_adapter_that_lacks_a_part_is_refused_when_it_is_registered(parts, message):
    with pytest.raises(TypeError, match=f"Halves {message}"):
        register(f"{__name__}.Block.forward")(type("Halves", (Adapter,), parts))


@torch.no_grad()
@pytest.mark.usefixtures("registered")
def test_an_adapter_without_a_projection_reads_the_grid_of_the_one_that_is_found():
    class Column(registry.ADAPTERS[f"{__name__}.Block.forward"]):  # type: ignore[misc]
        projection = ()

        @staticmethod
        def grid(projection, output, *args, **kwargs):
            return output.shape[2] * output.shape[3], 1

    register(f"{__name__}.Block.forward")(Column)
    model: Any = apply_algm(Model(), gbm_layers=[2])
    model(torch.rand(1, 3, 48, 48))
    assert model.algm.last_pass.grid == (36, 1)
