"""Read what the blocks of transformers have off their parts and their forward's arguments, not off a release."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .unpatched import unpatched

NORMS = {
    1: ("layernorm_before", "norm1", "layer_norm1", "rms_norm1"),
    2: ("layernorm_after", "norm2", "layer_norm2", "rms_norm2"),
}
ATTENTIONS = ("attention", "self_attn", "attn")
MLPS = ("mlp", "intermediate", "ffn")
# Masks of pairs of tokens, which follow the tokens that are left.
MASKS = ("attention_mask", "causal_attention_mask")
ARGUMENTS = {
    *MASKS,
    "head_mask",
    "output_attentions",
    "position_embeddings",
    "relative_position_bias",
    "interpolate_pos_encoding",
    "resolution",
    "dataset_index",
    "**",
}


def part_named(block: Any, names: Sequence[str]) -> Any:
    """Return the part of a block that has one of these names."""
    return next(getattr(block, name) for name in names if hasattr(block, name))


def norm_before(block: Any, half: int) -> Any:
    """Return the norm before the attention (half 1) or the MLP (half 2)."""
    return part_named(block, NORMS[half])


def residual_branch(block: Any, half: int, y: Tensor) -> Tensor:
    """Return what a half adds to the residual: its ``y`` after the block's dropout, layer scale and drop path."""
    if hasattr(block, "dropout"):
        y = block.dropout(y)
    if hasattr(block, f"layer_scale{half}"):
        y = getattr(block, f"layer_scale{half}")(y)
    scale = getattr(block, f"lambda_{half}", None)
    if scale is not None:
        y = scale * y
    return block.drop_path(y) if hasattr(block, "drop_path") else y


def why_unknown(block: Any) -> str | None:
    """Return what a block lacks, or has and should not have, to be read here; None if nothing."""
    for names in (*NORMS.values(), ATTENTIONS, MLPS):
        if not any(hasattr(block, name) for name in names):
            found = ", ".join(name for name, _ in block.named_children())
            return f"ALGM expects a part called {' or '.join(names)}, and found {found}"
    unknown = [name for name in parameter_names(unpatched(type(block)).forward) if name not in ARGUMENTS]
    if unknown:
        return f"ALGM does not know what its forward does with the argument {unknown[0]!r}"
    return None


def parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a forward's arguments after the module and its input; ``**`` for others by name."""
    return inspected_names(forward) if torch.compiler.is_compiling() else cached_names(forward)


def inspected_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return `parameter_names`, without the cache that no compiler traces."""
    _, _, *others = inspect.signature(forward).parameters.values()
    return tuple("**" if p.kind is p.VAR_KEYWORD else p.name for p in others)


cached_names = cache(inspected_names)


def arguments_by_name(module: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return by name what a module's forward is given beside its input."""
    names, given = parameter_names(unpatched(type(module)).forward), dict(kwargs)
    for place, value in enumerate(args):
        given[names[place]] = value
    return given


def returns_tuple(block: Any) -> bool:
    """Return whether a block returns its tokens in a tuple, as those do that return an attention map beside them."""
    return "output_attentions" in parameter_names(unpatched(type(block)).forward)


def tokens_in(output: Any) -> Tensor:
    """Return the tokens in the output of a block or of attention, which may be a tuple of them and a map."""
    return output[0] if isinstance(output, tuple) else output
