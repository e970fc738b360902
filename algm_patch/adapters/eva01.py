"""Blocks of the EVA-01 segmentation code, which ViT-Adapter shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ..core.layer_tokens import LayerTokens
from .attention import fused, look_up
from .base import Adapter
from .features import input_projection
from .registry import path_of, reads, refusal_of, refuse, register
from .timm import WINDOWED, scaled

BACKBONES = "mmseg_custom.models.backbones"
ATTENTION = tuple(f"{BACKBONES}.{file}.Attention.forward" for file in ("beit_baseline", "base.beit", "base.vit"))


class Eva01(Adapter):
    projection = "patch_embed.proj"

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, *ATTENTION)


@register(f"{BACKBONES}.beit_baseline.Block.forward")
class BaselineBlock(Eva01):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, rel_pos_bias: Tensor | None = None) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, rel_pos_bias, rel_pos_bias=rel_pos_bias)
        return x + block.drop_path(scaled(block.gamma_1, y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(scaled(block.gamma_2, block.mlp(block.norm2(x))))


@register(f"{BACKBONES}.base.beit.Block.forward")
class BeitBlock(Eva01):
    @staticmethod
    def attention_half(
        block: Any,
        x: Tensor,
        tokens: LayerTokens,
        H: int,  # noqa: N803
        W: int,  # noqa: N803
        rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        return recomputed(block, lambda x: BaselineBlock.attention_half(block, x, tokens, rel_pos_bias), x)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return recomputed(block, lambda x: BaselineBlock.mlp_half(block, x), x)


@register(f"{BACKBONES}.base.vit.Block.forward")
class VitBlock(Eva01):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, H: int, W: int) -> Tensor:  # noqa: N803
        def half(x: Tensor) -> Tensor:
            y = attend(block.attn, block.norm1(x), tokens, None, H, W)
            return x + block.drop_path(scaled(block.gamma1 if block.layer_scale else None, y))

        return recomputed(block, half, x)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        def half(x: Tensor) -> Tensor:
            y = block.mlp(block.norm2(x))
            return x + block.drop_path(scaled(block.gamma2 if block.layer_scale else None, y))

        return recomputed(block, half, x)

    @staticmethod
    def features(block: Any, metric: str) -> tuple[str, int | None] | None:
        return input_projection(block, "attn", metric)


refuse(f"{BACKBONES}.base.beit_win.Block.forward", WINDOWED)
refuse(f"{BACKBONES}.base.vit.WindowedAttention.forward", WINDOWED)


@reads(f"{BACKBONES}.beit_baseline.BEiTBaseline.forward_features")
def beit_baseline(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return trunk.out_indices


@reads(f"{BACKBONES}.vit_baseline.ViTBaseline.forward_features")
def vit_baseline(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return trunk.flags


def why_unknown_attention(attention: nn.Module, *known: str) -> str | None:
    """Why an attention that is none of these (paths of forwards) cannot run on merged tokens."""
    if path_of(type(attention).forward) in known:
        return None
    name = type(attention).__name__
    return refusal_of(attention) or f"of its attention, {name}, ALGM does not know what depends on the tokens' places"


def recomputed(block: Any, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``half(x)``, run again in the backward pass if the block is set to, as its own forward is."""
    with_cp = getattr(block, "with_cp", False)  # ViT-Adapter's first blocks have no such setting
    return checkpoint(half, x, use_reentrant=False) if with_cp and x.requires_grad else half(x)


def attend(attention: Any, x: Tensor, tokens: LayerTokens, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """The attention itself, called with these arguments, or on merged tokens what it computes, with their mask.

    Args:
        bias: [heads, P+N, P+N] relative position bias that comes on top of the attention's own.
    """
    if tokens.token_map is None:
        return attention(x, *args, **kwargs)
    if getattr(attention, "q_bias", None) is None:
        qkv = attention.qkv(x)
    else:
        qkv_bias = torch.cat([attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias])
        qkv = linear(x, attention.qkv.weight, qkv_bias)
    table = getattr(attention, "relative_position_bias_table", None)
    if table is not None:
        tokens = tokens.plus(look_up(table, attention.relative_position_index, tokens.token_map))
    mask = tokens.attention_mask(bias)
    return fused(attention, qkv, attention.num_heads, None if mask is None else mask.to(qkv.dtype))
