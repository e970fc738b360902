"""Attention of known blocks with one change each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from tests.support.mutants import Mutation, changing
from tests.support.plain_parts import DIM, HEADS


class OtherAttention(nn.Module):
    """Attention as in the known blocks but for one thing, which a function does to queries, keys and values."""

    def __init__(self, attend: Callable[..., Tensor], pair: bool = False, **parts: Any) -> None:
        super().__init__()
        self.num_heads, self.scale, self.how, self.pair = HEADS, (DIM // HEADS) ** -0.5, attend, pair
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.proj(self.how(self, q, k, v).transpose(1, 2).flatten(2))
        return (y, None) if self.pair else y


def attending(attend: Callable[..., Tensor], make: Callable[[], dict[str, Any]] = dict) -> Mutation:
    """Return the mutation with other attention, whose further parts are made anew for each block."""

    def other(attention: nn.Module) -> nn.Module:
        pair = isinstance(attention, nn.MultiheadAttention) or "Map" in type(attention).__name__
        return OtherAttention(attend, pair, **make())

    return changing(attn_or_self_attn=other)


def weighed(self: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return (q @ k.mT * self.scale + bias).softmax(-1) @ v


def near(length: int, reach: int) -> Tensor:
    place = torch.arange(length)
    return (place - place[:, None]).abs() <= reach


def windowed(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length, size = q.shape[2], self.window_size
    q, k, v = (pad(part, (0, 0, 0, -length % size)).unflatten(2, (-1, size)) for part in (q, k, v))
    mask = pad(torch.ones(length, dtype=torch.bool), (0, -length % size)).view(-1, 1, size)
    return scaled_dot_product_attention(q, k, v, mask).flatten(2, 3)[:, :, :length]


def best(logits: Tensor, count: int) -> Tensor:
    count = min(count, logits.shape[-1])
    return logits >= logits.topk(count, -1).values[..., -1:]


def band(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, near(q.shape[2], self.reach))


def talking(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = self.before((q @ k.mT * self.scale).movedim(1, -1))
    return self.behind(logits.softmax(2)).movedim(-1, 1) @ v


def with_value_of_earlier_call(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    before = self.value if self.value is not None and self.value.shape == v.shape else v
    self.value = v.detach()
    return scaled_dot_product_attention(q, k, (v + before) / 2)


def with_learned_key(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (torch.cat([part, self.learned.expand(len(q), HEADS, 1, -1)], 2) for part in (k, v))
    return scaled_dot_product_attention(q, k, v)


ATTENTION: dict[str, Mutation] = {
    "causal attention": attending(lambda self, q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)),
    "a bias of positions": attending(
        lambda self, q, k, v: weighed(self, q, k, v, self.bias[: q.shape[2], : q.shape[2]]),
        lambda: {"bias": nn.Parameter(torch.zeros(512, 512))},
    ),
    "a fixed bias of distances": attending(lambda self, q, k, v: weighed(self, q, k, v, near(q.shape[2], 1).float())),
    "windows": attending(windowed, lambda: {"window_size": 4}),
    "windows of many tokens": attending(windowed, lambda: {"window_size": 24}),
    "a band": attending(band, lambda: {"reach": 2}),
    "a band that a number in the code sets": attending(
        lambda self, q, k, v: scaled_dot_product_attention(q, k, v, near(q.shape[2], 2))
    ),
    "a wide band": attending(band, lambda: {"radius": 9, "reach": 9}),
    "the first token left out": attending(
        lambda self, q, k, v: scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:])
    ),
    "a temperature by the number of tokens": attending(
        lambda self, q, k, v: scaled_dot_product_attention(q * q.shape[2] ** 0.5, k, v)
    ),
    "a temperature by a number of many tokens": attending(
        lambda self, q, k, v: scaled_dot_product_attention(q * max(1.0, q.shape[2] / self.most), k, v),
        lambda: {"most": 40.0},
    ),
    "a band that nothing calls one": attending(band, lambda: {"reach": 20}),
    "the best keys alone": attending(
        lambda self, q, k, v: scaled_dot_product_attention(q, k, v, best(q @ k.mT, self.top)), lambda: {"top": 20}
    ),
    "talking heads": attending(talking, lambda: {"before": nn.Linear(HEADS, HEADS), "behind": nn.Linear(HEADS, HEADS)}),
    "the value of an earlier call": attending(with_value_of_earlier_call, lambda: {"value": None}),
    "sums in the place of means": attending(lambda self, q, k, v: (q @ k.mT * self.scale).sigmoid() @ v),
    "rotated by places": attending(
        lambda self, q, k, v: scaled_dot_product_attention(
            q * torch.arange(q.shape[2])[:, None].cos(), k * torch.arange(q.shape[2])[:, None].cos(), v
        )
    ),
    "softmax over queries": attending(lambda self, q, k, v: (q @ k.mT * self.scale).softmax(-2) @ v),
    "attention over the batch": attending(
        lambda self, q, k, v: weighed(self, *(part.transpose(0, 2) for part in (q, k, v))).transpose(0, 2)
    ),
    "a learned key": attending(with_learned_key, lambda: {"learned": nn.Parameter(torch.zeros(1, 1, 1, DIM // HEADS))}),
}
# Whose copies of keys weigh as much as they do merged.
HARMLESS: dict[str, Mutation] = {
    "explicit attention": attending(weighed),
    "fused attention": attending(lambda self, q, k, v: scaled_dot_product_attention(q, k, v)),
    "another scale": attending(lambda self, q, k, v: scaled_dot_product_attention(q, k, v, scale=0.7)),
    "the order of key and value": attending(lambda self, q, k, v: scaled_dot_product_attention(q, v, k)),
}
# What is refused by default only: without the weights of merged keys no attention counts copies.
OF_SIZES = ["softmax over queries"]
