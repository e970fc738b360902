"""Attention of other libraries on merged tokens: its own parts, around what it does not take as an argument."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..core.token_map import TokenMap
from .registry import is_wrapped, path_of


def is_own(attention: nn.Module, *forwards: str) -> bool:
    """Whether an attention module computes what the function of one of these paths does, and nothing else."""
    return "forward" not in attention.__dict__ and path_of(type(attention).forward) in forwards


def attend(attention: Any, x: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Attention's own projections and dropout around fused attention, which takes the weights of merged keys.

    Args:
        attention: with ``qkv`` and what :func:`fused` needs.
        x: [B, L, D].
        bias: [B, 1, 1, L], added to the logits of each key; None: nothing.

    Returns:
        [B, L, D].

    Raises:
        ValueError: if hooks on ``attention`` wait for a call of it, which is not made.
    """
    if attention._forward_hooks or attention._forward_pre_hooks or attention._backward_hooks:
        raise ValueError(
            f"this {type(attention).__name__} has hooks, but with merged tokens ALGM computes attention around it, as "
            "its forward takes no mask. Put the hooks on its qkv or proj, or call remove_algm first"
        )
    return fused(attention, attention.qkv(x), heads, bias)


def fused(attention: Any, qkv: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Fused attention with attention's own dropout and output projection.

    Args:
        attention: with ``scale``, ``attn_drop`` (a module or a rate), ``proj`` and ``proj_drop``.
        qkv: [B, L, 3 * heads * D], as its input projection leaves them.
        mask: broadcastable to [B, heads, L, L], added to the logits.

    Returns:
        [B, L, D'].
    """
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    drop = attention.attn_drop
    rate = drop.p * drop.training if isinstance(drop, nn.Dropout) else drop * attention.training
    y = scaled_dot_product_attention(q, k, v, mask, rate, scale=attention.scale)
    return attention.proj_drop(attention.proj(y.transpose(1, 2).flatten(2)))


def look_up(table: Tensor, index: Tensor, token_map: TokenMap) -> Tensor:
    """Relative biases between the groups alone: between all tokens they cost as much as in the unpatched model.

    Args:
        table: [T, heads].
        index: [P+N, P+N] positions in the table, of each pair of tokens.

    Returns:
        [B, heads, P+M, P+M], those of the groups' first members.
    """
    pairs = token_map.pair(index)[:, 0]
    return table.T.index_select(1, pairs.flatten()).view(-1, *pairs.shape).transpose(0, 1)


def altered(module: Any, **attributes: Any) -> Any:
    """The module with other attributes: same parameters, submodules and hooks. The module itself stays as it is."""
    other = object.__new__(type(module))
    other.__dict__.update(module.__dict__, **attributes)
    if not is_wrapped(module):
        other.__dict__.pop("forward", None)  # which would run the module itself
    return other
