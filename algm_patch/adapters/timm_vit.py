"""Split the blocks of timm's VisionTransformer: ViT, DeiT, CLIP, SigLIP, DINOv2 and their kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .registry import register
from .timm_parts import TimmBlock, attend, takes_mask
from .timm_trunks import register_trunk

VIT = "timm.models.vision_transformer"


@register(f"{VIT}.Block.forward")
class Block(TimmBlock):
    """Split a block that norms its tokens before attention and MLP."""

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, attn_mask, is_causal)
        return x + block.drop_path1(block.ls1(y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


@register(f"{VIT}.ResPostBlock.forward")
class ResPostBlock(TimmBlock):
    """Split a block that norms what attention and MLP return."""

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, x, tokens, attn_mask, is_causal)
        return x + block.drop_path1(block.norm1(y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.norm2(block.mlp(x)))


@register(f"{VIT}.ParallelThingsBlock.forward")
class ParallelThingsBlock(TimmBlock):
    """Split a block of several attentions beside each other, then several MLPs."""

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        def added_by(part: Any) -> Tensor:
            return part.drop_path(part.ls(attend(part.attn, part.norm(x), tokens, attn_mask, is_causal)))

        return x + torch.stack([added_by(part) for part in block.attns]).sum(dim=0)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + torch.stack([part(x) for part in block.ffns]).sum(dim=0)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return all(takes_mask(part.attn) for part in block.attns)

    @staticmethod
    def features(block: Any, compare: str) -> None:
        return None  # each of its attentions has its own


register_trunk(f"{VIT}.VisionTransformer")
