"""Compute BEiT's attention, as timm, mmsegmentation and EVA-01 write it, on merged tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..core.layer_tokens import LayerTokens
from .attention import bias_between_groups, check_not_hooked, split_heads, weigh_values


def attend_with_biases(attention: Any, x: Tensor, tokens: LayerTokens, bias: Tensor | None) -> Tensor:
    """Compute what attention does, with the biases of the tokens that are left in place of those of all tokens.

    Args:
        x: [B, P+M, D], of merged tokens.
        bias: [..., P+N, P+N] of all tokens, on top of the attention's own; None: nothing.

    Returns:
        [B, P+M, D].

    Raises:
        ValueError: if hooks on ``attention`` wait for a call of it, which is not made.
    """
    check_not_hooked(attention)
    assert tokens.token_map is not None
    table = getattr(attention, "relative_position_bias_table", None)
    if table is not None:
        tokens = tokens.plus(bias_between_groups(table, attention.relative_position_index, tokens.token_map))
    query, key, value = split_heads(project(attention, x), attention.num_heads)
    return weigh_values(attention, query, key, value, tokens.attention_mask(bias))


def project(attention: Any, x: Tensor) -> Tensor:
    """Return queries, keys and values [B, L, 3 * D] of tokens, with the biases that may stand beside the projection."""
    if getattr(attention, "q_bias", None) is None:
        return attention.qkv(x)
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias])
    return linear(x, attention.qkv.weight, bias)
