"""Split the blocks of open_clip's vision transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention import is_own
from .base import Adapter
from .refused import BATCH_NOT_FIRST
from .registry import path_of, reads_blocks, register

CLIP = "open_clip.transformer"
ATTENTION = f"{CLIP}.Attention.forward"


class ClipBlock(Adapter):
    """Provide what is the same for both blocks."""

    projection = "conv1"

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.ls_2(block.mlp(block.ln_2(x)))


@register(f"{CLIP}.ResidualAttentionBlock.forward")
class ResidualAttentionBlock(ClipBlock):
    """Split a block with torch's MultiheadAttention, which adds a float padding mask to the logits of each key.

    From open_clip 4 on it has open_clip's own attention, which adds any mask.
    """

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, k_x: Any = None, v_x: Any = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        if k_x is not None or v_x is not None:
            raise ValueError("k_x, v_x: attention to tokens other than the image's own. Call remove_algm first")
        y, heads = block.ln_1(x), block.attn.num_heads
        if is_own(block.attn, ATTENTION):
            if attn_mask is not None and tokens.token_map is not None:
                attn_mask = split_heads(attn_mask.to(y.dtype), heads)
            return x + block.ls_1(block.attention(q_x=y, attn_mask=tokens.attention_mask(attn_mask)))
        if attn_mask is not None and tokens.token_map is not None:
            attn_mask = tokens.pair(split_heads(attn_mask, heads)).expand(-1, heads, -1, -1).flatten(0, 1)
        if tokens.key_bias is None:
            y = block.attention(q_x=y, attn_mask=attn_mask)
        else:
            attn_mask = None if attn_mask is None else attn_mask.to(y.dtype)
            padding_mask = tokens.key_bias[:, 0, 0]
            y, _ = block.attn(y, y, y, need_weights=False, key_padding_mask=padding_mask, attn_mask=attn_mask)
        return x + block.ls_1(y)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        own = path_of(type(block).attention) == f"{CLIP}.ResidualAttentionBlock.attention"
        return own and is_own(block.attn, path_of(nn.MultiheadAttention.forward), ATTENTION)

    @staticmethod
    def refusal(block: Any) -> str | None:
        return None if getattr(block.attn, "batch_first", True) else BATCH_NOT_FIRST


@register(f"{CLIP}.CustomResidualAttentionBlock.forward")
class CustomResidualAttentionBlock(ClipBlock):
    """Split a block with open_clip's own attention."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None and tokens.token_map is not None:
            attn_mask = split_heads(attn_mask, block.attn.num_heads)
            if attn_mask.dtype == torch.bool and hasattr(
                block.attn, "use_fsdpa"
            ):  # until open_clip 3: what is left out
                attn_mask = x.new_zeros(attn_mask.shape).masked_fill_(attn_mask, -torch.inf)
        y = block.attn(block.ln_1(x), attn_mask=tokens.attention_mask(attn_mask))
        return x + block.ls_1(block.ln_attn(y))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return is_own(block.attn, ATTENTION)


def split_heads(mask: Tensor, heads: int) -> Tensor:
    """Return a mask [L, L] as it is, and one of [B * heads, L, L] as [B, heads, L, L]."""
    return mask.unflatten(0, (-1, heads)) if mask.dim() == 3 else mask


@reads_blocks(f"{CLIP}.Transformer.forward", f"{CLIP}.CustomTransformer.forward")
def last_block(transformer: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the last block, the only one that ``forward`` reads."""
    return [len(transformer.resblocks) - 1]


@reads_blocks(f"{CLIP}.Transformer.forward_intermediates", f"{CLIP}.CustomTransformer.forward_intermediates")
def intermediate_blocks(
    transformer: Any, x: Tensor, attn_mask: Any = None, indices: Any = None, stop_early: bool = False
) -> Iterable[int]:
    """Return the blocks that a call of ``forward_intermediates`` reads: those asked for, and the last that runs."""
    from timm.models._features import feature_take_indices  # of which open_clip's is a copy

    taken, last = feature_take_indices(len(transformer.resblocks), indices)
    return [*taken, last if stop_early else len(transformer.resblocks) - 1]
