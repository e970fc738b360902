"""Parts of small blocks, as projects write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DIM, HEADS = 32, 4


class DropPath(nn.Module):
    """Leave out what a branch adds, for some images of a batch in training."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class LayerScale(nn.Module):
    """Multiply each channel, at first by almost nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Attention as most projects write it, with logits of its own."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def heads_of(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def joined(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads_of(x)
        return self.joined(self.attn_drop((q * self.scale @ k.mT).softmax(-1)) @ v)


class NormedAttention(Attention):
    """Fused attention with norms of queries and keys, as in newer timm."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__(dim, heads)
        self.q_norm, self.k_norm, self.fused_attn = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads), True

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads_of(x)
        y = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.joined(y)


class AttentionWithMap(Attention):
    """Attention that returns its map too, as in Segmenter."""

    def forward(self, x: Tensor, mask: Any = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        q, k, v = self.heads_of(x)
        weights = (q * self.scale @ k.mT).softmax(-1)
        return self.joined(weights @ v), weights


class ApartAttention(nn.Module):
    """Attention with a projection each, as in HF and CLIP."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.out_proj, self.dropout = nn.Linear(dim, dim), 0.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated MLP."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(nn.functional.silu(gate) * value)


def mlp(dim: int = DIM) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
