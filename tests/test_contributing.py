"""CONTRIBUTING.md: its adapter works as it stands there, and the files that it and docs/releasing.md name exist."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters import registry

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK, ADAPTER, CASES = re.findall(r"^```python\n(.*?)^```", CONTRIBUTING, re.DOTALL | re.MULTILINE)


def rotated(x, cos, sin):
    """Return queries or keys [B, heads, 1+N, d], those of patches turned by their angles."""
    prefix, patches = x[:, :, :1], x[:, :, 1:]
    first, second = patches.chunk(2, -1)
    return torch.cat([prefix, patches * cos + torch.cat([-second, first], -1) * sin], 2)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, rope, mask=None):
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotated(query, *rope), rotated(key, *rope)
        y = nn.functional.scaled_dot_product_attention(query, key, value, mask)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Sequential):
    def __init__(self, dim):
        super().__init__(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class Network(nn.Module):
    """The network that the text tells of."""

    def __init__(self, dim, depth, heads):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 16, 16)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.layers = nn.ModuleList(sys.modules["plainvit.vit"].Block(dim, heads) for _ in range(depth))
        self.rates = torch.linspace(0, 1, dim // heads)

    def forward(self, image, mask=None):
        x = self.stem(image)
        places = torch.cartesian_prod(*map(torch.arange, x.shape[2:])).float() @ torch.tensor([1.0, 0.5])
        angles = places[:, None] * self.rates
        rope = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x.flatten(2).mT], 1)
        for layer in self.layers:
            x = layer(x, rope, mask)
        return x


@pytest.fixture
def case(monkeypatch):
    """The case of the third step, with the block and the adapter that stand before it."""
    for name in ("ADAPTERS", "READERS"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    library = ModuleType("plainvit.vit")
    vars(library).update(nn=nn, Attention=Attention, MLP=MLP, Network=Network)
    monkeypatch.setattr(Network, "__module__", "plainvit.vit")
    monkeypatch.setattr(Network.forward, "__module__", "plainvit.vit", raising=False)
    monkeypatch.setitem(sys.modules, "plainvit", ModuleType("plainvit"))
    monkeypatch.setitem(sys.modules, "plainvit.vit", library)
    exec(BLOCK, vars(library))
    exec(ADAPTER, {"__name__": "algm_patch.adapters.plainvit", "__package__": "algm_patch.adapters"})
    names: dict[str, Any] = {}
    exec(CASES, names)
    return names["CASES"]["plainvit"]


@torch.no_grad()
def test_the_adapter_of_the_text_works(case):
    model, image = case.build(), case.image()
    inputs = case.position_inputs(31)
    expected = case.tokens(model, image, **inputs)
    assert expected.shape == (2, 31, 64)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=1.05)
    assert torch.equal(case.tokens(model, image, **inputs), expected)
    model.algm.update(gbm_layers=[3], tau=0.5)
    merged = case.tokens(model, image, **inputs)
    assert merged.shape == expected.shape
    assert not torch.equal(merged, expected)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31
    remove_algm(model)
    assert torch.equal(case.tokens(model, image, **inputs), expected)


@torch.no_grad()
def test_without_an_adapter_the_block_is_proved(case):
    del registry.ADAPTERS["plainvit.vit.Block.forward"]
    model, image = case.build(), case.image()
    expected = case.tokens(model, image)
    apply_algm(model, gbm_layers=[3], merge_to=1.0)
    torch.testing.assert_close(case.tokens(model, image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/releasing.md"])
def test_the_files_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`((?:\.?\w+/)+[\w.]*|\w+\.(?:cfg|cff|md|toml))`", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()
