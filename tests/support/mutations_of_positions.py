"""Near copies, with one thing changed, of blocks that are told of places."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.attention_of_positions import (
    WIDTH,
    Attention,
    BiasAttention,
    FixedRope,
    FixedRopeAttention,
    PosAttention,
    Rope2d,
    RopeAttention,
    XposAttention,
    angles_of,
    turn,
    turn_patches,
)
from tests.support.models import GRID
from tests.support.models_of_positions import BiasBlock, FfnBlock, ListBlock, PosBlock, XposBlock


class MlpReadsPositions(PosBlock):
    def forward(self, x, pos=None):
        x = x + self.ls1(self.attn(self.norm1(x), pos=pos))
        return x + self.ls2(self.mlp(self.norm2(x))) + 0.1 * pos.sum(-1, keepdim=True)


class PostNorm(XposBlock):
    def forward(self, x, xpos):
        x = self.norm1(x + self.attn(x, xpos))
        return self.norm2(x + self.mlp(x))


class ResidualOfNormed(XposBlock):
    def forward(self, x, xpos):
        y = self.norm1(x)
        x = y + self.attn(y, xpos)
        return x + self.mlp(self.norm2(x))


class Parallel(XposBlock):
    def forward(self, x, xpos):
        return x + self.attn(self.norm1(x), xpos) + self.mlp(self.norm2(x))


class NoResidual(XposBlock):
    def forward(self, x, xpos):
        x = self.attn(self.norm1(x), xpos)
        return x + self.mlp(self.norm2(x))


class Shifted(XposBlock):
    def forward(self, x, xpos):
        x = x + self.attn(self.norm1(x), xpos)
        x = x.roll(1, 1)
        return x + self.mlp(self.norm2(x))


class Gated(ListBlock):
    def __init__(self, attn):
        super().__init__(attn)
        self.gate = nn.Linear(WIDTH, WIDTH)

    def one(self, x, rope):
        x = x + self.gate(x).sigmoid() * self.ls1(self.attn(self.norm1(x), rope=rope))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ScaleDropped(ListBlock):
    def one(self, x, rope):
        x = x + self.attn(self.norm1(x), rope=rope)
        return x + self.ls2(self.mlp(self.norm2(x)))


class ScaleOfTheOtherHalf(ListBlock):
    def one(self, x, rope):
        x = x + self.ls1(self.attn(self.norm1(x), rope=rope))
        return x + self.ls1(self.mlp(self.norm2(x)))


class MeanAdded(ListBlock):
    def one(self, x, rope):
        x = x + self.ls1(self.attn(self.norm1(x), rope=rope))
        return x + self.ls2(self.mlp(self.norm2(x))) + x.mean(1, keepdim=True)


class DropsTooMuch(ListBlock):
    """Leaves images out of a branch in training, and does not scale up the others."""

    def __init__(self, attn):
        super().__init__(attn)
        self.sample_drop_ratio = 0.5

    def one(self, x, rope):
        if not self.training:
            return super().one(x, rope)
        some = torch.randperm(len(x))[: len(x) // 2]
        x = torch.index_add(x, 0, some, self.ls1(self.attn(self.norm1(x[some]), rope=rope)))
        some = torch.randperm(len(x))[: len(x) // 2]
        return torch.index_add(x, 0, some, self.ls2(self.mlp(self.norm2(x[some]))))


class CountsTokens(PosAttention):
    """Counts the tokens, and leaves the positions that it is given."""

    def forward(self, x, pos=None):
        query, key, value = self.split(x)
        angles = angles_of(torch.arange(x.shape[1])[:, None].expand(-1, 2))
        return self.weigh(turn(query, angles), turn(key, angles), value)


class BiasOfPlace(PosAttention):
    def forward(self, x, pos=None):
        query, key, value = self.split(x)
        return self.weigh(query, key, value, torch.arange(float(x.shape[1])))


class NearOnly(PosAttention):
    def forward(self, x, pos=None):
        apart = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()
        query, key, value = self.split(x)
        return self.weigh(query, key, value, torch.zeros(apart.shape).masked_fill(apart > 2, -torch.inf))


class KeysOfUnitSpread(PosAttention):
    def forward(self, x, pos=None):
        query, key, value = self.split(x)
        return self.weigh(query, key / key.square().sum(2, keepdim=True).sqrt(), value)


class NoSoftmax(PosAttention):
    def weigh(self, query, key, value, bias=None):
        return self.proj(((query @ key.mT * self.scale).sigmoid() @ value).transpose(1, 2).flatten(2))


class TurnsTheFirst(RopeAttention):
    """Turns the first tokens, the class token too, and not the last."""

    def forward(self, x, attn_bias=None, rope=None):
        query, key, value = self.split(x)
        query, key = (turn_patches(part.flip(2), *rope).flip(2) for part in (query, key))
        return self.weigh(query, key, value)


class BiasTransposed(BiasAttention):
    def weigh(self, query, key, value, bias=None):
        return super().weigh(query, key, value, bias.mT)


class BiasInWindows(BiasAttention):
    def forward(self, x, rel_pos_bias=None):
        windows = x.unflatten(1, (-1, len(self.relative_position_index))).flatten(0, 1)
        return super().forward(windows, rel_pos_bias).view(x.shape)


class BiasTwice(BiasAttention):
    def weigh(self, query, key, value, bias=None):
        return super().weigh(query, key, value, 2 * bias)


class ScaledTwice(BiasAttention):
    def weigh(self, query, key, value, bias=None):
        return super().weigh(query * self.scale, key, value, bias)


class ValuesShifted(BiasAttention):
    def weigh(self, query, key, value, bias=None):
        return super().weigh(query, key, value.roll(1, 2), bias)


class TurnsOnlyAFew(FixedRopeAttention):
    def turned(self, patches):
        return torch.where(torch.arange(patches.shape[2])[:, None] % 2 == 0, super().turned(patches), patches)


class MixingMlp(nn.Sequential):
    def forward(self, x):
        return super().forward(x + x.roll(1, 1))


def with_mixing_mlp() -> Any:
    block = PosBlock(PosAttention(rope=Rope2d()))
    block.mlp = MixingMlp(*block.mlp)
    return block


class OtherNorm(FfnBlock):
    def forward(self, x):
        x = x + self.attn(self.ln2(x))
        return self.ffn(self.ln2(x), identity=x)


class IdentityTwice(FfnBlock):
    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x), identity=x)


class ValuesTurned(PosAttention):
    """Turns the values too: attention is called itself, so that this is no other block."""

    def forward(self, x, pos=None):
        query, key, value = self.split(x)
        return self.weigh(*(self.rope(part, pos) for part in (query, key, value)))


class KeysOnly(PosAttention):
    def forward(self, x, pos=None):
        query, key, value = self.split(x)
        return self.weigh(query, self.rope(key, pos), value)


# None may be taken for what it resembles.
MUTATIONS: dict[str, Any] = {
    "the MLP half reads positions": lambda: MlpReadsPositions(PosAttention(rope=Rope2d())),
    "post-norm": lambda: PostNorm(XposAttention(rope=Rope2d())),
    "the residual is of normed tokens": lambda: ResidualOfNormed(XposAttention(rope=Rope2d())),
    "both halves beside each other": lambda: Parallel(XposAttention(rope=Rope2d())),
    "no residual around attention": lambda: NoResidual(XposAttention(rope=Rope2d())),
    "a shift between the halves": lambda: Shifted(XposAttention(rope=Rope2d())),
    "a gate": lambda: Gated(RopeAttention()),
    "a scale that is not used": lambda: ScaleDropped(RopeAttention()),
    "one scale for both halves": lambda: ScaleOfTheOtherHalf(RopeAttention()),
    "the mean of all tokens": lambda: MeanAdded(RopeAttention()),
    "stochastic depth that does not scale": lambda: DropsTooMuch(RopeAttention()),
    "tokens counted in place of positions": lambda: PosBlock(CountsTokens(rope=Rope2d())),
    "a bias of absolute places": lambda: PosBlock(BiasOfPlace()),
    "a window": lambda: PosBlock(NearOnly()),
    "rotations of the prefix": lambda: ListBlock(TurnsTheFirst()),
    "a bias from key to query": lambda: BiasBlock(BiasTransposed(GRID, own=True)),
    "a bias in windows": lambda: BiasBlock(BiasInWindows(GRID, own=True)),
    "a bias twice": lambda: BiasBlock(BiasTwice(GRID, own=True)),
    "a scale twice": lambda: BiasBlock(ScaledTwice(GRID, own=True)),
    "values shifted": lambda: BiasBlock(ValuesShifted(GRID, own=True)),
    "rotations of some patches": lambda: BiasBlock(TurnsOnlyAFew(rope=FixedRope(GRID))),
    "an MLP that mixes tokens": with_mixing_mlp,
    "the second norm twice": lambda: OtherNorm(Attention()),
    "the residual twice": lambda: IdentityTwice(Attention()),
}
# Attention that cannot be told how many tokens a merged one holds.
UNWEIGHED: dict[str, Any] = {
    "keys normed over the tokens": lambda: PosBlock(KeysOfUnitSpread()),
    "no softmax": lambda: PosBlock(NoSoftmax()),
}
