"""Provide what adapters of timm's blocks share: the patch projection, and how attention takes its inputs."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention import is_own
from .base import Adapter
from .cost import BlockCost, block_cost
from .features import input_projection
from .registry import forward_path, path_of
from .timm_naflex import EMBEDS, naflex_grid

DIFFERENTIAL = "timm.layers.diff_attention.DiffAttention.forward"
# Attention whose tokens meet in fused attention alone, if it is set to fuse.
PLAIN_ATTENTION = (
    "timm.layers.attention.Attention.forward",
    "timm.layers.attention.AttentionRope.forward",
    "timm.models.eva.EvaAttention.forward",
    DIFFERENTIAL,
)


class TimmBlock(Adapter):
    """Provide what is the same for all of timm's blocks."""

    projection = ("patch_embed.proj", "embeds")

    @staticmethod
    def grid(projection: Any, output: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return (H, W) of the patches: see `Adapter.grid`, and `naflex_grid`."""
        if path_of(type(projection).forward) == EMBEDS:
            return naflex_grid(projection, *args, **kwargs)
        return Adapter.grid(projection, output)

    @staticmethod
    def packs(block: Any, *args: Any, attn_mask: Any = None, **kwargs: Any) -> bool:
        """Return whether the block's attention fuses, without a mask: see `Adapter.packs`."""
        attentions = [part.attn for part in getattr(block, "attns", [block])]
        return not args and attn_mask is None and all(map(fuses, attentions))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        """Return whether attention takes a mask: see `Adapter.takes_mask`."""
        return takes_mask(block.attn)

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        """Return where attention leaves queries, keys or values: see `Adapter.features`."""
        return input_projection(block, "attn", compare)

    @classmethod
    def cost(cls, block: Any) -> BlockCost:
        """Return what the block costs.

        Differential attention has two maps, each of half the queries and keys, and each multiplied with all values.
        """
        cost = block_cost(block, cls.mlp_half)
        differential = any(forward_path(part) == DIFFERENTIAL for part in block.modules())
        return replace(cost, pairs=cost.pairs * 3 // 2) if differential else cost


def takes_mask(attention: nn.Module) -> bool:
    """Return whether attention takes a mask."""
    return "attn_mask" in inspect.signature(attention.forward).parameters


def fuses(attention: nn.Module) -> bool:
    """Return whether tokens meet in ``scaled_dot_product_attention`` and nowhere else."""
    return is_own(attention, *PLAIN_ATTENTION) and bool(attention.fused_attn)


def attend(
    attention: Any,
    x: Tensor,
    tokens: LayerTokens,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    rope: Tensor | None = None,
) -> Tensor:
    """Call attention on the tokens [B, L, D] that are left, with the mask and the rotary angles of these.

    Args:
        attn_mask, is_causal, rope: as the block was given them, for all tokens.

    Raises:
        ValueError: if attention is to be causal.
    """
    if is_causal:
        raise ValueError(
            "is_causal=True: causal attention goes by the order of the tokens, which merging gives up. "
            "Call remove_algm first"
        )
    inputs: dict[str, Tensor | None] = {}
    if attn_mask is not None or tokens.key_bias is not None:
        inputs["attn_mask"] = tokens.key_bias if attn_mask is None else tokens.attention_mask(attn_mask)
    if rope is not None:
        inputs["rope"] = average_angles(tokens, rope)
    return attention(x, **inputs)


def average_angles(tokens: LayerTokens, rope: Tensor) -> Tensor:
    """Return the rotary angles of the patches that are left.

    Args:
        rope: sines, then cosines of all patches: [N, D], [heads, N, D] or [B, 1 or heads, N, D].

    Returns:
        [B, 1 or heads, M, D]; ``rope`` itself while nothing is merged.
    """
    if tokens.token_map is None:
        return rope
    half = rope.shape[-1] // 2
    unturned = torch.cat([rope.new_zeros(half), rope.new_ones(half)])  # sines and cosines of no angle
    averages = tokens.average_patches(rope, batched=rope.dim() == 4, neutral=unturned)
    return averages[:, None] if averages.dim() == 3 else averages
