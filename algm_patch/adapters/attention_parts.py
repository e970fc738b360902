"""Compute attention of merged tokens from the parts of modules that are known by the names of these parts alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .attention import check_not_hooked, dropout_rate, split_heads
from .block_parts import part_of

TOGETHER = ("qkv", "to_qkv", "qkv_proj", "in_proj")
APART = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v"))
HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads", "nhead")
OUTPUT = ("proj", "out_proj", "o_proj", "to_out", "c_proj", "out", "dense", "projection")
DROPS = ("proj_drop", "resid_drop", "projection_dropout", "out_drop")
ATTENTION_DROPS = ("attn_drop", "attn_dropout", "attention_dropout", "dropout")
COMPARED = ("query", "key", "value")


def projections(attention: nn.Module) -> tuple[str, ...]:
    """Return the names of what makes queries, keys and values: one for all or three; none if not known."""
    for names in (*((name,) for name in TOGETHER), *APART):
        if all(callable(getattr(attention, name, None)) for name in names):  # a module, or a function that observes it
            return names
    return ()


def has_parts(attention: Any) -> bool:
    """Return whether attention has the parts that `attend_by_parts` takes. That they are all of it must be proved."""
    heads, output = part_of(attention, HEADS), part_of(attention, OUTPUT)
    known = isinstance(attention, nn.Module) and isinstance(heads, int) and isinstance(output, nn.Module)
    return known and bool(projections(attention))


def attend_by_parts(attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Compute what attention does, with a mask, from its parts.

    Args:
        x: [B, L, D].
        mask: broadcastable to [B, heads, L, L], added to the logits; None: nothing.

    Returns:
        [B, L, D].

    Raises:
        ValueError: if hooks on ``attention`` wait for a call of it, which is not made.
    """
    names, heads = projections(attention), part_of(attention, HEADS)
    check_not_hooked(attention, "projections")
    made = [getattr(attention, name)(x) for name in names]
    query, key, value = (
        split_heads(made[0], heads) if len(made) == 1 else [y.unflatten(2, (heads, -1)).transpose(1, 2) for y in made]
    )
    if (norm := getattr(attention, "q_norm", None)) is not None:
        query = norm(query)
    if (norm := getattr(attention, "k_norm", None)) is not None:
        key = norm(key)
    rate = dropout_rate(attention, part_of(attention, ATTENTION_DROPS))
    scale = part_of(attention, ("scale", "scaling"))
    mask = None if mask is None else mask.to(query.dtype)
    y = scaled_dot_product_attention(query, key, value, mask, rate, scale=scale)
    y = part_of(attention, OUTPUT)(y.transpose(1, 2).flatten(2))
    drop = part_of(attention, DROPS)
    return y if drop is None else drop(y)


def compared_projection(block: Any, attentions: tuple[str, ...], compare: str) -> tuple[str, int | None] | None:
    """Return where a block's attention leaves its queries, keys or values: see ``Adapter.features``.

    None for one with biases beside its projection, whose weights it uses without calling it.

    Args:
        attentions: names that the attention of a block may have.
    """
    path = next(name for name in attentions if getattr(block, name, None) is not None)
    if getattr(getattr(block, path), "q_bias", None) is not None:
        return None
    names, third = projections(getattr(block, path)), COMPARED.index(compare)
    return (f"{path}.{names[0]}", third) if len(names) == 1 else (f"{path}.{names[third]}", None)
