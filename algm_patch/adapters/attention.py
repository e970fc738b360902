"""Compute attention of merged tokens from the parts of modules whose own forward takes no mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..core.token_map import TokenMap
from .instance_forward import is_wrapped
from .registry import forward_path, refusal_of


def is_own(attention: nn.Module, *forwards: str) -> bool:
    """Return whether an attention module computes what the function of one of these paths does, and nothing else."""
    return not is_wrapped(attention) and forward_path(attention) in forwards


def why_unknown_attention(attention: nn.Module, *forwards: str) -> str | None:
    """Return why attention cannot run on merged tokens: its forward is at none of these paths. None if it is."""
    if forward_path(attention) in forwards:
        return None
    name = type(attention).__name__
    return refusal_of(attention) or f"of its attention, {name}, ALGM does not know what depends on the tokens' places"


def attend(attention: Any, x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Compute what attention does, with a mask.

    Args:
        attention: with a projection ``qkv`` and what `weigh_values` needs.
        x: [B, L, D].
        mask: broadcastable to [B, heads, L, L], added to the logits; None: nothing.

    Returns:
        [B, L, D].

    Raises:
        ValueError: if hooks on ``attention`` wait for a call of it, which is not made.
    """
    check_not_hooked(attention)
    query, key, value = split_heads(attention.qkv(x), heads)
    return weigh_values(attention, query, key, value, mask)


def check_not_hooked(attention: nn.Module, parts: str = "qkv or proj") -> None:
    """Raise ValueError if attention has hooks, which would not run: it is computed from its parts, and not called."""
    if attention._forward_hooks or attention._forward_pre_hooks or attention._backward_hooks:
        raise ValueError(
            f"this {type(attention).__name__} has hooks, but with merged tokens ALGM computes attention around it, as "
            f"its forward takes no mask of merged tokens. Put the hooks on its {parts}, or call remove_algm first"
        )


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return queries, keys and values [B, heads, L, D] of their projection [B, L, 3 * heads * D]."""
    return qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def weigh_values(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention's output, with its own scale, dropout and output projection.

    Args:
        attention: with ``scale``, ``attn_drop`` (a module or a rate), ``proj`` and ``proj_drop``. It is computed by
            fused attention, unless its ``fused_attn`` is False.
        query, key, value: [B, heads, L, D].
        mask: broadcastable to [B, heads, L, L], added to the logits; None: nothing.

    Returns:
        [B, L, D'].
    """
    drop = attention.attn_drop
    if getattr(attention, "fused_attn", True):
        mask = None if mask is None else mask.to(query.dtype)
        rate = dropout_rate(attention, drop)
        y = scaled_dot_product_attention(query, key, value, mask, rate, scale=attention.scale)
    else:
        logits = (query * attention.scale) @ key.mT
        y = drop((logits if mask is None else logits + mask).softmax(-1)) @ value
    return attention.proj_drop(attention.proj(y.transpose(1, 2).flatten(2)))


def dropout_rate(attention: Any, drop: Any) -> float:
    """Return how many of its weights attention drops now, by a module or a rate; None: it drops none."""
    if drop is None:
        return 0.0
    return drop.p * drop.training if isinstance(drop, nn.Dropout) else drop * attention.training


def bias_between_groups(table: Tensor, index: Tensor, token_map: TokenMap) -> Tensor:
    """Look up the relative biases of the groups alone: those of all tokens cost as much as in the unpatched model.

    Args:
        table: [T, heads].
        index: [P+N, P+N] positions in the table, of each pair of tokens.

    Returns:
        [B, heads, P+M, P+M], those of the groups' first members.
    """
    pairs = token_map.pair(index)[:, 0]
    return table.T.index_select(1, pairs.flatten()).view(-1, *pairs.shape).transpose(0, 1)
