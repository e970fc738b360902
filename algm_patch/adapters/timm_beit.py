"""Split the blocks of timm's BEiT, with relative position biases: a block's own, and one that all blocks share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .attention import why_unknown_attention
from .beit_attention import attend_with_biases
from .registry import register
from .residual import layer_scale
from .timm_parts import TimmBlock
from .timm_trunks import register_trunk

BEIT = "timm.models.beit"


@register(f"{BEIT}.Block.forward")
class BeitBlock(TimmBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos_bias: Any = None) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, shared_rel_pos_bias)
        return x + block.drop_path1(layer_scale(block.gamma_1, y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(layer_scale(block.gamma_2, block.mlp(block.norm2(x))))

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, f"{BEIT}.Attention.forward")

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return True


def attend(attention: Any, x: Tensor, tokens: LayerTokens, shared_bias: Tensor | None) -> Tensor:
    """Return the attention of the tokens [B, L, D] that are left, with their own bias and the shared one.

    Args:
        shared_bias: [1, heads, P+N, P+N] of all tokens; None: nothing.
    """
    if tokens.token_map is None:
        return attention(x, shared_rel_pos_bias=shared_bias)
    if attention.relative_position_bias_table is None:
        return attention(x, shared_rel_pos_bias=tokens.attention_mask(shared_bias))
    return attend_with_biases(attention, x, tokens, shared_bias)  # attention itself would add the bias of all tokens


register_trunk(f"{BEIT}.Beit")
