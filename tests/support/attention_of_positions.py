"""Attention that is told of places, of classes that the library does not know.

Each has the shape of one that is common, and was written for these tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, HEADS = 64, 4
HEAD = WIDTH // HEADS


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Return ``x`` [..., L, D] turned by angles [..., L, D // 2]."""
    left, right = x.chunk(2, -1)
    cosine, sine = angles.cos().to(x), angles.sin().to(x)
    return torch.cat([left * cosine - right * sine, left * sine + right * cosine], -1)


def angles_of(positions: Tensor) -> Tensor:
    """Return the rotary angles [..., HEAD // 2] of rows and columns [..., 2]."""
    frequencies = 10 ** -torch.linspace(0, 1, HEAD // 4)
    return (positions[..., None].to(frequencies) * frequencies).flatten(-2)


def places(grid: tuple[int, int]) -> Tensor:
    """Return the row and column of each patch, [N, 2]."""
    return torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))


class Rope2d(nn.Module):
    """Turns queries or keys by given positions, which are whole numbers."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        assert not positions.is_floating_point()
        return turn(x, angles_of(positions)[:, None])


class FixedRope(nn.Module):
    """Turns the patches of one grid, which it holds."""

    angles: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("angles", angles_of(places(grid)))

    def forward(self, x: Tensor, patch_resolution: Any = None) -> Tensor:
        return turn(x, self.angles)


class Attention(nn.Module):
    """Give the attentions below what they share: projections, and attention that fuses or not."""

    def __init__(self, fused: bool = False, rope: nn.Module | None = None, norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale, self.fused_attn = HEADS, HEAD**-0.5, fused
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = (nn.LayerNorm(HEAD) if norm else nn.Identity() for _ in range(2))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.rope: Any = rope

    def split(self, x: Tensor) -> Any:
        query, key, value = self.qkv(x).unflatten(2, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        return self.q_norm(query), self.k_norm(key), value

    def weigh(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.fused_attn:
            y = scaled_dot_product_attention(query, key, value, bias)
        else:
            logits = query @ key.mT * self.scale
            y = (logits if bias is None else logits + bias).softmax(-1) @ value
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.weigh(*self.split(x))


class RopeAttention(Attention):
    """Takes sines and cosines of the patches."""

    def forward(self, x: Tensor, attn_bias: Any = None, rope: Any = None) -> Tensor:
        query, key, value = self.split(x)
        if rope is not None:
            query, key = (turn_patches(part, *rope) for part in (query, key))
        return self.weigh(query, key, value)


def turn_patches(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Return ``x`` with its last tokens, the patches, turned."""
    prefix, patches = x.tensor_split([x.shape[-2] - sine.shape[-2]], -2)
    left, right = patches.to(sine).chunk(2, -1)
    turned = patches.to(sine) * cosine + torch.cat([-right, left], -1) * sine
    return torch.cat([prefix, turned.to(x)], -2)


class PosAttention(Attention):
    """Takes positions of all tokens, and turns by its rope module."""

    def forward(self, x: Tensor, pos: Any = None) -> Tensor:
        query, key, value = self.split(x)
        if self.rope is not None:
            query, key = self.rope(query, pos), self.rope(key, pos)
        return self.weigh(query, key, value)


class XposAttention(Attention):
    """Takes positions of all tokens, under another name and required."""

    def forward(self, x: Tensor, xpos: Any) -> Tensor:  # type: ignore[override]
        query, key, value = self.split(x)
        return self.weigh(self.rope(query, xpos), self.rope(key, xpos), value)


class FixedRopeAttention(Attention):
    """Turns the patches, behind one class token, by what it holds."""

    def forward(self, x: Tensor, rel_pos_bias: Any = None, attn_mask: Any = None) -> Tensor:
        query, key, value = self.split(x)
        query, key = (torch.cat([part[:, :, :1], self.turned(part[:, :, 1:])], 2) for part in (query, key))
        return self.weigh(query, key, value, rel_pos_bias)

    def turned(self, patches: Tensor) -> Tensor:
        return self.rope(patches)


class GridRopeAttention(FixedRopeAttention):
    """Takes the size of the grid as well."""

    def forward(self, x: Tensor, patch_resolution: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return FixedRopeAttention.forward(self, x)


class BiasAttention(Attention):
    """Adds a bias from its own table, if it has one, and one that it is given."""

    relative_position_index: Tensor

    def __init__(self, grid: tuple[int, int], own: bool, **options: Any) -> None:
        super().__init__(**options)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.relative_position_bias_table = nn.Parameter(torch.randn(table_size(grid), HEADS)) if own else None
        if own:
            self.register_buffer("relative_position_index", relative_index(grid))

    def forward(self, x: Tensor, rel_pos_bias: Any = None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = nn.functional.linear(x, self.qkv.weight, bias)
        query, key, value = qkv.unflatten(2, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        found = torch.zeros(())
        if self.relative_position_bias_table is not None:
            found = self.relative_position_bias_table[self.relative_position_index].movedim(-1, 0)
        return self.weigh(query, key, value, found if rel_pos_bias is None else found + rel_pos_bias)


def table_size(grid: tuple[int, int]) -> int:
    """Return the number of offsets between two places of a grid, and three for the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def relative_index(grid: tuple[int, int]) -> Tensor:
    """Return where in a table the bias of each pair of tokens stands, [1 + N, 1 + N]."""
    offsets = places(grid)[:, None] - places(grid) + torch.tensor(grid) - 1
    index = torch.empty(1 + len(offsets), 1 + len(offsets), dtype=torch.int64)
    last = table_size(grid) - 1
    index[1:, 1:] = offsets[..., 0] * (2 * grid[1] - 1) + offsets[..., 1]
    index[0], index[:, 0], index[0, 0] = last - 2, last - 1, last
    return index


class SharedBias(nn.Module):
    """The bias that all blocks are given."""

    index: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(table_size(grid), HEADS))
        self.register_buffer("index", relative_index(grid))

    def forward(self) -> Tensor:
        return self.table[self.index].movedim(-1, 0)
