"""Read what the blocks of transformers have off their parts and their forward's arguments, not off a release."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .key_bias import with_key_bias
from .registry import is_wrapped, unpatched

NORMS = {1: ("layernorm_before", "norm1", "layer_norm1"), 2: ("layernorm_after", "norm2", "layer_norm2")}
ATTENTIONS = ("attention", "self_attn")
MLPS = ("mlp", "intermediate")
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
    "**",
}
# What adds a float mask to its logits, and what :class:`KeyBias` finds.
BIASED = ("sdpa", "eager")


# -- a block's parts and arguments


def part(block: Any, names: Sequence[str]) -> Any:
    """Return the part of a block that has one of these names."""
    return next(getattr(block, name) for name in names if hasattr(block, name))


def norm(block: Any, half: int) -> Any:
    """Return the norm before the attention (half 1) or the MLP (half 2)."""
    return part(block, NORMS[half])


def branch(block: Any, half: int, y: Tensor) -> Tensor:
    """Return what a half adds to the residual: its ``y`` after the block's dropout, layer scale and drop path."""
    if hasattr(block, "dropout"):
        y = block.dropout(y)
    if hasattr(block, f"layer_scale{half}"):
        y = getattr(block, f"layer_scale{half}")(y)
    scale = getattr(block, f"lambda_{half}", None)
    if scale is not None:
        y = scale * y
    return block.drop_path(y) if hasattr(block, "drop_path") else y


def why_not(block: Any) -> str | None:
    """Return what a block lacks, or has and should not have, to be read here; None if nothing."""
    for names in (*NORMS.values(), ATTENTIONS, MLPS):
        if not any(hasattr(block, name) for name in names):
            found = ", ".join(name for name, _ in block.named_children())
            return f"ALGM expects a part called {' or '.join(names)}, and found {found}"
    unknown = [name for name in parameters(unpatched(type(block)).forward) if name not in ARGUMENTS]
    if unknown:
        return f"ALGM does not know what its forward does with the argument {unknown[0]!r}"
    return None


def parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a forward's arguments after the module and its input; ``**`` for others by name."""
    return names_of(forward) if torch.compiler.is_compiling() else cached_names_of(forward)


def names_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    _, _, *others = inspect.signature(forward).parameters.values()
    return tuple("**" if p.kind is p.VAR_KEYWORD else p.name for p in others)


cached_names_of = cache(names_of)


def arguments(module: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return by name what a module's forward is given beside its input."""
    names, given = parameters(unpatched(type(module)).forward), dict(kwargs)
    for place, value in enumerate(args):
        given[names[place]] = value
    return given


def returns_tuple(block: Any) -> bool:
    """Return whether a block returns its tokens in a tuple, as those do that return an attention map beside them."""
    return "output_attentions" in parameters(unpatched(type(block)).forward)


# -- its attention


def attention_of(block: Any) -> Any:
    return part(block, ATTENTIONS)


def is_pair(attention: Any) -> bool:
    """Return whether attention consists of ``attention``, which computes it, and ``output``, which projects."""
    return hasattr(attention, "attention")


def path_of_core(block: Any) -> str:
    """Return the path, from a block, of the module that computes its attention."""
    path = next(name for name in ATTENTIONS if hasattr(block, name))
    return f"{path}.attention" if is_pair(attention_of(block)) else path


def core(attention: Any) -> Any:
    """Return the module that computes attention: the first of a pair, or attention itself."""
    return attention.attention if is_pair(attention) else attention


def implementation(attention: Any) -> str:
    """Return what computes attention: "sdpa", "eager", another name of the config, or the class, if it is not known.

    By what its forward calls: attention that computes itself does not follow its config.
    """
    forward = type(core(attention)).forward
    while hasattr(forward, "__wrapped__"):  # by decorators of transformers
        forward = forward.__wrapped__
    called = forward.__code__.co_names
    if "ALL_ATTENTION_FUNCTIONS" in called:
        return core(attention).config._attn_implementation or "eager"
    if "scaled_dot_product_attention" in called:
        return "sdpa"
    return "eager" if "softmax" in called else type(core(attention)).__name__


def passes_mask_on(attention: Any) -> bool:
    """Return whether attention hands its ``attention_mask``, of any shape, to fused attention, which adds it.

    Eager attention of some releases multiplies by it instead, and that of others insists on its shape.
    """
    names = parameters(type(attention).forward)
    return "attention_mask" in names and "**" in names and implementation(attention) == "sdpa"


def attend(block: Any, y: Tensor, tokens: LayerTokens, given: dict[str, Any]) -> Tensor:
    """Return the block's attention on normed tokens [B, L, D].

    Args:
        given: the arguments of the block's forward by name, but for those that the block itself uses.
    """
    attention = attention_of(block)
    if "head_mask" in given and "attention_mask" in parameters(type(attention).forward):
        given["attention_mask"] = given.pop("head_mask")  # an old name for it
    check_maps(block, tokens, given)
    masks = [name for name in MASKS if given.get(name) is not None]
    if tokens.token_map is not None and (masks or tokens.key_bias is not None):
        check_implementation(block)
    if tokens.key_bias is not None and passes_mask_on(attention):
        given["attention_mask"] = tokens.attention_mask(given.get("attention_mask"))
        return first(attention(y, **given))
    given.update({name: tokens.pair(given[name]) for name in masks})
    if tokens.key_bias is None:
        return first(attention(y, **given))
    return first(with_key_bias(tokens.key_bias, attention, y, **given))


def first(output: Any) -> Tensor:
    """Return attention's tokens, which may stand in a tuple with its map."""
    return output[0] if isinstance(output, tuple) else output


def check_implementation(block: Any) -> None:
    """Raise ValueError if attention adds neither a mask of merged tokens nor the weights of merged keys."""
    found = implementation(attention_of(block))
    if found not in BIASED:
        raise ValueError(
            f"attn_implementation={found!r} takes neither an attention mask of merged tokens nor the bias of "
            f"proportional_attention=True in {type(block).__name__}. {REMEDY}, or set "
            "model.algm.proportional_attention = False and pass no mask"
        )


REMEDY = "Load the model with attn_implementation='sdpa' (or call model.set_attn_implementation('sdpa'))"


def check_maps(block: Any, tokens: LayerTokens, given: dict[str, Any]) -> None:
    """Raise ValueError if attention maps are asked for where merged layers have none to give."""
    attention = attention_of(block)
    if returns_tuple(block) and given.get("output_attentions"):
        raise ValueError(
            f"output_attentions=True: {type(block).__name__} returns its attention map beside its tokens, where those "
            "of merged layers do not fit. Call remove_algm first"
        )
    if tokens.image is not None and gives_maps(attention, given):
        raise ValueError(
            "output_attentions=True: the images of this batch are left with different numbers of tokens, whose "
            "attention maps make no batch. Set model.algm.batch = 'min', or give one image at a time"
        )


def gives_maps(attention: Any, given: dict[str, Any]) -> bool:
    """Return whether attention maps are asked for: by an argument, the config, or what collects them from outside."""
    module = core(attention)
    config = getattr(module, "config", None)
    asked = given.get("output_attentions", getattr(config, "output_attentions", False))
    return asked or is_wrapped(module) or any(map(collects_maps, module._forward_hooks.values()))


def collects_maps(hook: Any) -> bool:
    """Return whether a hook is the one that transformers leaves on attention for good, and collects maps now."""
    collector = getattr(hook, "__globals__", {}).get("_active_collector")
    return collector is not None and "attentions" in (collector.get() or ())
