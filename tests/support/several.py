"""Models with several ViTs in them."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .models import build


class Pair(nn.Module):
    """Run two ViTs of different sizes on one image, as Depth Pro does."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = build("ViT", depth=4), build("ViT", depth=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.fine(image) + self.coarse(image)


class Siamese(nn.Module):
    """Run one ViT on two images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build("ViT", depth=4)
        self.same = self.encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image) - self.same(image.flip(-1))


class Alternating(nn.Module):
    """Attend within frames and over all frames in turns, as VGGT does."""

    def __init__(self, frames: int = 2) -> None:
        super().__init__()
        vit = build("ViT", depth=3, class_token=False, global_pool="avg")
        self.frames = frames
        self.patch_embed = vit.patch_embed
        self.frame_blocks = vit.blocks
        self.global_blocks = build("ViT", depth=3).blocks
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x: Any = self.patch_embed(image)
        for within, over in zip(self.frame_blocks, self.global_blocks, strict=True):
            x = within(x)
            x = over(x.reshape(-1, self.frames * x.shape[1], x.shape[2])).reshape(x.shape)
        return x


class TwoSequences(nn.Module):
    """Run more blocks on what a whole ViT leaves, as VGGT does."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = build("ViT", depth=3, class_token=False, global_pool="avg")
        self.frame_blocks = build("ViT", depth=2).blocks
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.frame_blocks(self.patch_embed.forward_features(image))
        return x


class EncoderAndDecoder(nn.Module):
    """Run a decoder of the same blocks, without a patch embedding of its own, as MAE does."""

    def __init__(self) -> None:
        super().__init__()
        vit = build("ViT", depth=3, class_token=False, global_pool="avg")
        self.patch_embed, self.blocks = vit.patch_embed, vit.blocks
        self.decoder = nn.Sequential(Block(64, 4), Block(64, 4))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.blocks(self.patch_embed(image)))
