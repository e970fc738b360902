"""timm's VisionTransformer and its blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..passes import LayerTokens
from . import Adapter, reads, refuse, register

VIT = "timm.models.vision_transformer"


class TimmBlock(Adapter):
    projection = "patch_embed.proj"

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return takes_mask(block.attn)


@register(f"{VIT}.Block.forward")
class Block(TimmBlock):
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
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        def branch(part: Any) -> Tensor:
            return part.drop_path(part.ls(attend(part.attn, part.norm(x), tokens, attn_mask, is_causal)))

        return x + torch.stack([branch(part) for part in block.attns]).sum(dim=0)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + torch.stack([part(x) for part in block.ffns]).sum(dim=0)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return all(takes_mask(part.attn) for part in block.attns)


FUSED = "its attention and MLP share one residual, so there is no place between them to merge"
WINDOWED = "its attention runs in windows of a full grid, which merged tokens no longer form"
refuse(f"{VIT}.ParallelScalingBlock.forward", FUSED)
refuse(f"{VIT}.DiffParallelScalingBlock.forward", FUSED)
refuse("timm.models.swin_transformer.SwinTransformerBlock.forward", WINDOWED)
refuse("timm.models.swin_transformer_v2.SwinTransformerV2Block.forward", WINDOWED)
refuse("timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock.forward", WINDOWED)
refuse("timm.models.vision_transformer_sam.Block.forward", WINDOWED)


@reads(f"{VIT}.VisionTransformer.forward_features")
def forward_features(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return [len(trunk.blocks) - 1]


@reads(f"{VIT}.VisionTransformer.forward_intermediates")
def forward_intermediates(
    trunk: Any,
    x: Tensor,
    indices: Any = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Iterable[int]:
    from timm.models._features import feature_take_indices

    taken, _ = feature_take_indices(len(trunk.blocks), indices)
    return taken if intermediates_only else [*taken, len(trunk.blocks) - 1]


def takes_mask(attention: nn.Module) -> bool:
    return "attn_mask" in inspect.signature(attention.forward).parameters


def attend(attention: Any, x: Tensor, tokens: LayerTokens, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        raise ValueError(
            "is_causal=True: causal attention goes by the order of the tokens, which merging gives up. "
            "Call remove_algm first"
        )
    mask = tokens.attention_mask(attn_mask)
    return attention(x) if mask is None else attention(x, attn_mask=mask)
