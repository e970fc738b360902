"""Small models whose blocks take positions or biases, of classes that the library does not know.

Each block has the shape of one that is common, and was written for these tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests.support.models import GRID

WIDTH, HEADS = 64, 4
HEAD = WIDTH // HEADS
PATCH = 16


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Return ``x`` [..., L, D] turned by angles [..., L, D // 2]."""
    left, right = x.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
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

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("angles", angles_of(places(grid)))

    def forward(self, x: Tensor, patch_resolution: Any = None) -> Tensor:
        return turn(x, self.angles)


class Attention(nn.Module):
    """What the attentions below share: projections, and attention that fuses or not."""

    def __init__(self, fused: bool = False, rope: nn.Module | None = None, norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale, self.fused_attn = HEADS, HEAD**-0.5, fused
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = (nn.LayerNorm(HEAD) if norm else nn.Identity() for _ in range(2))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.rope = rope

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
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
    left, right = patches.chunk(2, -1)
    return torch.cat([prefix, patches * cosine + torch.cat([-right, left], -1) * sine], -2)


class PosAttention(Attention):
    """Takes positions of all tokens, and turns by its rope module."""

    def forward(self, x: Tensor, pos: Any = None) -> Tensor:
        query, key, value = self.split(x)
        if self.rope is not None:
            query, key = self.rope(query, pos), self.rope(key, pos)
        return self.weigh(query, key, value)


class XposAttention(Attention):
    """Takes positions of all tokens, under another name and required."""

    def forward(self, x: Tensor, xpos: Tensor) -> Tensor:
        query, key, value = self.split(x)
        assert self.rope is not None
        return self.weigh(self.rope(query, xpos), self.rope(key, xpos), value)


class FixedRopeAttention(Attention):
    """Turns the patches, behind one class token, by what it holds."""

    def forward(self, x: Tensor, rel_pos_bias: Any = None, attn_mask: Any = None) -> Tensor:
        query, key, value = self.split(x)
        query, key = (torch.cat([part[:, :, :1], self.turned(part[:, :, 1:])], 2) for part in (query, key))
        return self.weigh(query, key, value, rel_pos_bias)

    def turned(self, patches: Tensor) -> Tensor:
        assert self.rope is not None
        return self.rope(patches)


class GridRopeAttention(FixedRopeAttention):
    """Takes the size of the grid as well."""

    def forward(self, x: Tensor, patch_resolution: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return FixedRopeAttention.forward(self, x)


class BiasAttention(Attention):
    """Adds a bias from its own table, if it has one, and one that it is given."""

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

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(table_size(grid), HEADS))
        self.register_buffer("index", relative_index(grid))

    def forward(self) -> Tensor:
        return self.table[self.index].movedim(-1, 0)


class Scale(nn.Module):
    """A layer scale that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def mlp() -> nn.Sequential:
    """Return an MLP."""
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Block(nn.Module):
    """What most blocks below have: two norms, attention, an MLP."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = attn, mlp()
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ScaledBlock(Block):
    """Adds layer scales, and stochastic depth that leaves images of a batch out."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__(attn)
        del self.drop_path
        self.ls1, self.ls2 = Scale(), Scale()
        self.sample_drop_ratio = 0.0


class ListBlock(ScaledBlock):
    """Takes a tensor or a list, and rotations of the patches likewise."""

    def forward(self, x_or_x_list: Any, rope_or_rope_list: Any = None) -> Any:
        if isinstance(x_or_x_list, Tensor):
            return self.one(x_or_x_list, rope_or_rope_list)
        return [self.one(x, rope) for x, rope in zip(x_or_x_list, rope_or_rope_list, strict=True)]

    def one(self, x: Tensor, rope: Any) -> Tensor:
        if not self.training or self.sample_drop_ratio == 0:
            x = x + self.ls1(self.attn(self.norm1(x), rope=rope))
            return x + self.ls2(self.mlp(self.norm2(x)))
        count = max(int(len(x) * (1 - self.sample_drop_ratio)), 1)
        some = torch.randperm(len(x))[:count]
        y = self.ls1(self.attn(self.norm1(x[some]), rope=rope))
        x = torch.index_add(x, 0, some, y, alpha=len(x) / count)
        some = torch.randperm(len(x))[:count]
        return torch.index_add(x, 0, some, self.ls2(self.mlp(self.norm2(x[some]))), alpha=len(x) / count)


class PosBlock(ScaledBlock):
    """Takes positions of all tokens, or none."""

    def forward(self, x: Tensor, pos: Any = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), pos=pos))
        return x + self.ls2(self.mlp(self.norm2(x)))


class XposBlock(Block):
    """Takes positions of all tokens."""

    def forward(self, x: Tensor, xpos: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path(self.attn(self.norm1(x), xpos))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BiasBlock(Block):
    """Takes a bias that all blocks share, and has layer scales that are parameters, or None."""

    def __init__(self, attn: nn.Module, scaled: bool = True) -> None:
        super().__init__(attn)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.randn(WIDTH)) if scaled else None for _ in range(2))

    def forward(self, x: Tensor, rel_pos_bias: Any = None) -> Tensor:
        y = self.attn(self.norm1(x), rel_pos_bias=rel_pos_bias)
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)


class GridBlock(Block):
    """Takes the size of the grid."""

    def forward(self, x: Tensor, patch_resolution: tuple[int, int]) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path(self.attn(self.norm1(x), patch_resolution))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Ffn(nn.Module):
    """Adds what it returns to the residual that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.gamma2 = mlp(), Scale()

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        return (x if identity is None else identity) + self.gamma2(self.layers(x))


class FfnBlock(nn.Module):
    """Names its parts otherwise, and lets its MLP add the residual."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(WIDTH), attn
        self.ln2, self.ffn = nn.LayerNorm(WIDTH), Ffn()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return self.ffn(self.ln2(x), identity=x)


class OneNormBlock(FfnBlock):
    """Norms by its first norm in both halves, and has a second that it does not use."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return self.ffn(self.ln1(x), identity=x)


class PatchEmbed(nn.Module):
    """A patch convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Vit(nn.Module):
    """Runs its blocks on a class token and the patches, with what they take."""

    def __init__(self, blocks: list[nn.Module], takes: str = "", grid: tuple[int, int] = GRID) -> None:
        super().__init__()
        self.patch_embed, self.cls_token = PatchEmbed(), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(blocks)
        self.shared = SharedBias(grid) if takes == "bias" else None
        self.takes = takes

    def inputs(self, batch: int, grid: tuple[int, int]) -> dict[str, Any]:
        """Return what the blocks take beside their tokens."""
        found = places(grid)
        positions = torch.cat([torch.zeros_like(found[:1]), found + 1]).expand(batch, -1, -1)
        angles = angles_of(found).repeat(1, 2)
        return {
            "": {},
            "pos": {"pos": positions},
            "xpos": {"xpos": positions},
            "rope": {"rope_or_rope_list": (angles.sin(), angles.cos())},
            "bias": {"rel_pos_bias": None if self.shared is None else self.shared()},
            "grid": {"patch_resolution": grid},
        }[self.takes]

    def forward(self, image: Tensor) -> Tensor:
        """Return the final tokens [B, 1 + N, D]."""
        patches = self.patch_embed(image)
        inputs = self.inputs(len(image), (patches.shape[2], patches.shape[3]))
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), patches.flatten(2).mT], 1)
        for block in self.blocks:
            x = block(x, **inputs)
        return x


KINDS: dict[str, Any] = {
    "rotations of the patches": lambda: (ListBlock(RopeAttention(fused=True)), "rope"),
    "positions": lambda: (PosBlock(PosAttention(fused=True, rope=Rope2d(), norm=True)), "pos"),
    "positions, not fused": lambda: (XposBlock(XposAttention(rope=Rope2d())), "xpos"),
    "rotations held": lambda: (BiasBlock(FixedRopeAttention(rope=FixedRope(GRID)), scaled=False), ""),
    "rotations held, grid given": lambda: (GridBlock(GridRopeAttention(rope=FixedRope(GRID))), "grid"),
    "bias of each block": lambda: (BiasBlock(BiasAttention(GRID, own=True)), ""),
    "bias of all blocks": lambda: (BiasBlock(BiasAttention(GRID, own=False), scaled=False), "bias"),
    "both biases": lambda: (BiasBlock(BiasAttention(GRID, own=True)), "bias"),
    "no positions": lambda: (Block(Attention()), ""),
    "MLP that adds": lambda: (FfnBlock(Attention(fused=True)), ""),
    "MLP that adds, one norm": lambda: (OneNormBlock(Attention(fused=True)), ""),
}


def build(kind: str, depth: int = 5) -> Vit:
    """Build a model of a kind, in eval mode, with random weights."""
    torch.manual_seed(0)
    blocks, takes = zip(*(KINDS[kind]() for _ in range(depth)), strict=True)
    return Vit(list(blocks), takes[0]).eval()
