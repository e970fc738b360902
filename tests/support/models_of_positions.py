"""Small models whose blocks are told of places, of classes that the library does not know.

Each block has the shape of one that is common, and was written for these tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.attention_of_positions import (
    WIDTH,
    Attention,
    BiasAttention,
    FixedRope,
    FixedRopeAttention,
    GridRopeAttention,
    PosAttention,
    Rope2d,
    RopeAttention,
    SharedBias,
    XposAttention,
    angles_of,
    places,
)
from tests.support.layers_of_copies import NewAttention, NewLayer, OldFusedLayer, OldLayer, SinesFirst
from tests.support.models import GRID

PATCH = 16


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


class Parts(nn.Module):
    """Give the blocks below what most of them have: two norms, attention, an MLP."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = attn, mlp()
        self.drop_path: nn.Module = nn.Identity()


class Block(Parts):
    """Takes its tokens alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ScaledBlock(Parts):
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


class XposBlock(Parts):
    """Takes positions of all tokens."""

    def forward(self, x: Tensor, xpos: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), xpos))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BiasBlock(Parts):
    """Takes a bias that all blocks share, and has layer scales that are parameters, or None."""

    def __init__(self, attn: nn.Module, scaled: bool = True) -> None:
        super().__init__(attn)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.randn(WIDTH)) if scaled else None for _ in range(2))

    def forward(self, x: Tensor, rel_pos_bias: Any = None) -> Tensor:
        y = self.attn(self.norm1(x), rel_pos_bias=rel_pos_bias)
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)


class GridBlock(Parts):
    """Takes the size of the grid."""

    def forward(self, x: Tensor, patch_resolution: tuple[int, int]) -> Tensor:
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
        every: dict[str, dict[str, Any]] = {
            "": {},
            "pos": {"pos": positions},
            "xpos": {"xpos": positions},
            "rope": {"rope_or_rope_list": (angles.sin(), angles.cos())},
            "bias": {"rel_pos_bias": None if self.shared is None else self.shared()},
            "grid": {"patch_resolution": grid},
            "embeddings": {"attention_mask": None, "position_embeddings": (angles.cos(), angles.sin())},
        }
        return every[self.takes]

    def forward(self, image: Tensor) -> Tensor:
        """Return the final tokens [B, 1 + N, D]."""
        patches = self.patch_embed(image)
        inputs = self.inputs(len(image), (patches.shape[2], patches.shape[3]))
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), patches.flatten(2).mT], 1)
        for block in self.blocks:
            found = block(x, **inputs)
            x = found[0] if isinstance(found, tuple) else found
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
    "layer that returns a tuple": lambda: (OldLayer(), ""),
    "layer that returns a tuple with no map": lambda: (OldFusedLayer(), ""),
    "layer that returns its tokens": lambda: (NewLayer(NewAttention()), "embeddings"),
    "layer that is told sines first": lambda: (NewLayer(SinesFirst()), "embeddings"),
}


def build(kind: str, depth: int = 5) -> Any:
    """Build a model of a kind, in eval mode, with random weights."""
    torch.manual_seed(0)
    blocks, takes = zip(*(KINDS[kind]() for _ in range(depth)), strict=True)
    return Vit(list(blocks), takes[0]).eval()
