"""Small ViTs whose blocks are written out here, as projects copy those of others under paths of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.plain_parts import (
    DIM,
    HEADS,
    ApartAttention,
    Attention,
    AttentionWithMap,
    DropPath,
    LayerScale,
    NormedAttention,
    SwiGLU,
    mlp,
)


class Block(nn.Module):
    """A block that norms first. Its branches are methods, so that mutants can join them in another way."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.build(drop)

    def build(self, drop: float) -> None:
        raise NotImplementedError

    def attend(self, y: Tensor) -> Tensor:
        """Return what normed tokens become in attention, up to the residual."""
        raise NotImplementedError

    def feed(self, y: Tensor) -> Tensor:
        """Return what normed tokens become in the MLP, up to the residual."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.feed(self.norm2(x))


class TimmBlock(Block):
    """Layer scales and two stochastic depths, as in newer timm."""

    def build(self, drop: float) -> None:
        self.attn: nn.Module = NormedAttention()
        self.mlp = mlp()
        self.ls1, self.ls2 = LayerScale(DIM), LayerScale(DIM)
        self.drop_path1, self.drop_path2 = DropPath(drop), DropPath(drop)

    def attend(self, y: Tensor) -> Tensor:
        return self.drop_path1(self.ls1(self.attn(y)))

    def feed(self, y: Tensor) -> Tensor:
        return self.drop_path2(self.ls2(self.mlp(y)))


class MaeBlock(Block):
    """One stochastic depth and nothing else, as in MAE, DeiT and older timm."""

    def build(self, drop: float) -> None:
        self.attn, self.mlp, self.drop_path = Attention(), mlp(), DropPath(drop)

    def attend(self, y: Tensor) -> Tensor:
        return self.drop_path(self.attn(y))

    def feed(self, y: Tensor) -> Tensor:
        return self.drop_path(self.mlp(y))


class BeitBlock(MaeBlock):
    """Layer scales that are parameters of the block, as in BEiT and Depth Anything V1."""

    def build(self, drop: float) -> None:
        super().build(drop)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.full((DIM,), 1e-5)), nn.Parameter(torch.full((DIM,), 1e-5))

    def attend(self, y: Tensor) -> Tensor:
        return self.drop_path(self.gamma_1 * self.attn(y))

    def feed(self, y: Tensor) -> Tensor:
        return self.drop_path(self.gamma_2 * self.mlp(y))


class SegmenterBlock(MaeBlock):
    """Attention that returns a pair, as in Segmenter."""

    def build(self, drop: float) -> None:
        super().build(drop)
        self.attn = AttentionWithMap()

    def attend(self, y: Tensor) -> Tensor:
        y, _ = self.attn(y)
        return self.drop_path(y)


class DinoBlock(TimmBlock):
    """Stochastic depth that leaves images out of a batch, as in DINOv2 and the projects that copy it."""

    def build(self, drop: float) -> None:
        super().build(drop)
        self.attn, self.mlp, self.sample_drop_ratio = Attention(), SwiGLU(), drop

    def added(self, x: Tensor, branch: Any) -> Tensor:
        if not self.training or self.sample_drop_ratio <= 0.1:
            return x + self.drop_path1(branch(x))  # the first for both branches, as upstream
        kept = torch.randperm(len(x))[: max(int(len(x) * (1 - self.sample_drop_ratio)), 1)]
        return torch.index_add(x, 0, kept, branch(x[kept]), alpha=len(x) / len(kept))

    def forward(self, x: Any) -> Any:
        if isinstance(x, list):
            return [self(each) for each in x]
        x = self.added(x, lambda x: self.ls1(self.attn(self.norm1(x))))
        return self.added(x, lambda x: self.ls2(self.mlp(self.norm2(x))))


class OwnBlock(Block):
    """A user's own, with other names and attention with a projection each."""

    def build(self, drop: float) -> None:
        self.self_attn: nn.Module = ApartAttention()
        self.ffn, self.dropout = mlp(), nn.Dropout(drop)

    def attend(self, y: Tensor) -> Tensor:
        return self.dropout(self.self_attn(y))

    def feed(self, y: Tensor) -> Tensor:
        return self.ffn(y)


class TorchvisionBlock(OwnBlock):
    """Attention of torch, as in torchvision."""

    def build(self, drop: float) -> None:
        super().build(drop)
        self.self_attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def attend(self, y: Tensor) -> Tensor:
        return self.dropout(self.self_attn(y, y, y, need_weights=False)[0])


class TorchBlock(nn.TransformerEncoderLayer):
    """Torch's own layer; the mutants join its branches in another way."""

    def __init__(self, drop: float = 0.0, activation: Any = "gelu", **options: Any) -> None:
        super().__init__(DIM, HEADS, 2 * DIM, drop, activation, **{"batch_first": True, "norm_first": True, **options})

    def attend(self, y: Tensor) -> Tensor:
        return self._sa_block(y, None, None)

    def feed(self, y: Tensor) -> Tensor:
        return self._ff_block(y)


class Vit(nn.Module):
    """A patch convolution, a class token, and a loop over blocks. Its tokens have no positions."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches, self.class_token = nn.Conv2d(3, DIM, 8, 8), nn.Parameter(torch.zeros(1, 1, DIM))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.cat([self.class_token.expand(len(image), -1, -1), self.patches(image).flatten(2).mT], 1)
        for block in self.blocks:
            x = block(x)
        return x


KINDS: dict[str, Any] = {
    "timm-like": TimmBlock,
    "MAE-like": MaeBlock,
    "BEiT-like": BeitBlock,
    "Segmenter-like": SegmenterBlock,
    "DINOv2-like": DinoBlock,
    "own names": OwnBlock,
    "torchvision-like": TorchvisionBlock,
    "torch's layer": TorchBlock,
}


def build(block: Any, depth: int = 3, **options: Any) -> Any:
    """Build a ViT of such blocks, in eval mode, with weights so large that each part shows."""
    torch.manual_seed(0)
    model = Vit(*(block(**options) for _ in range(depth)))
    for name, parameter in model.named_parameters():
        mean = 0.0 if parameter.dim() > 1 or name.endswith("bias") else 1.0
        nn.init.normal_(parameter, mean, 0.2)
    return model.eval()


def image_of_equal_patches(batch: int = 2) -> Tensor:
    """Return images whose patches are equal in squares of two by two, and else are not."""
    coarse = torch.randn(batch, 3, 3 * 8, 3 * 8, generator=torch.Generator().manual_seed(0))
    patches = coarse.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, 3, 3, 8, 8]
    twice = patches.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return twice.permute(0, 1, 2, 4, 3, 5).reshape(batch, 3, 48, 48)
