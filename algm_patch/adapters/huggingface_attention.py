"""Call the attention of transformers' blocks on merged tokens, by what computes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .huggingface_parts import ATTENTIONS, MASKS, parameter_names, part_named, returns_tuple, tokens_in
from .instance_forward import is_wrapped
from .key_bias import with_key_bias

# Implementations that add a float mask to their logits, and that `KeyBias` finds.
BIASED = ("sdpa", "eager")
REMEDY = "Load the model with attn_implementation='sdpa' (or call model.set_attn_implementation('sdpa'))"


def attention_of(block: Any) -> Any:
    """Return the attention module of a block."""
    return part_named(block, ATTENTIONS)


def is_pair(attention: Any) -> bool:
    """Return whether attention consists of ``attention``, which computes it, and ``output``, which projects."""
    return hasattr(attention, "attention")


def inner_attention(attention: Any) -> Any:
    """Return the module that computes attention: the first of a pair, or attention itself."""
    return attention.attention if is_pair(attention) else attention


def path_of_inner_attention(block: Any) -> str:
    """Return the path, from a block, of the module that computes its attention."""
    path = next(name for name in ATTENTIONS if hasattr(block, name))
    return f"{path}.attention" if is_pair(attention_of(block)) else path


def implementation(attention: Any) -> str:
    """Return what computes attention: "sdpa", "eager", another name of the config, or the class, if it is not known.

    It goes by what the forward calls: attention that computes itself does not follow its config.
    """
    forward = type(inner_attention(attention)).forward
    while hasattr(forward, "__wrapped__"):  # by decorators of transformers
        forward = forward.__wrapped__
    called = forward.__code__.co_names
    if "ALL_ATTENTION_FUNCTIONS" in called:
        return inner_attention(attention).config._attn_implementation or "eager"
    if "scaled_dot_product_attention" in called:
        return "sdpa"
    return "eager" if "softmax" in called else type(inner_attention(attention)).__name__


def why_causal(block: Any) -> str | None:
    """Return why attention that transformers computes causally cannot run on merged tokens; None if it does not.

    It does where attention has ``is_causal`` and gets no mask: Phi-4's vision, whose mask is left out if it hides
    nothing.
    """
    attention = attention_of(block)
    found = implementation(attention)
    if not getattr(inner_attention(attention), "is_causal", False) or not found.startswith(("sdpa", "flash")):
        return None
    return (
        f"transformers computes its attention causally with attn_implementation={found!r}: a token "
        "sees only those before it, which merged tokens have no more. Load the model with attn_implementation='eager', "
        "which does not"
    )


def passes_mask_on(attention: Any) -> bool:
    """Return whether attention hands its ``attention_mask``, of any shape, to fused attention, which adds it.

    Eager attention of some releases multiplies by it instead, and that of others insists on its shape.
    """
    names = parameter_names(type(attention).forward)
    return "attention_mask" in names and "**" in names and implementation(attention) == "sdpa"


def attend(block: Any, y: Tensor, tokens: LayerTokens, given: dict[str, Any]) -> Tensor:
    """Return the block's attention on normed tokens [B, L, D].

    Args:
        given: the arguments of the block's forward by name, but for those that the block itself uses.

    Raises:
        ValueError: if attention maps are asked for where there are none, or the implementation takes no mask.
    """
    attention = attention_of(block)
    taken = parameter_names(type(attention).forward)
    if "head_mask" in given and "head_mask" not in taken and "attention_mask" in taken:
        given["attention_mask"] = given.pop("head_mask")  # an old name for it
    elif "attention_mask" in given and "attention_mask" not in taken and "head_mask" in taken:
        mask = given.pop("attention_mask")  # by which older BLIPs multiply the weights of attention
        given["head_mask"] = mask if mask is None else tokens.pair(mask)
    check_maps(block, tokens, given)
    masks = [name for name in MASKS if given.get(name) is not None]
    if tokens.token_map is not None and (masks or tokens.key_bias is not None):
        check_implementation(block)
    if tokens.key_bias is not None and passes_mask_on(attention):
        given["attention_mask"] = tokens.attention_mask(given.get("attention_mask"))
        return tokens_in(attention(y, **given))
    given.update({name: tokens.pair(given[name]) for name in masks})
    if tokens.key_bias is None:
        return tokens_in(attention(y, **given))
    return tokens_in(with_key_bias(tokens.key_bias, attention, y, **given))


def check_implementation(block: Any) -> None:
    """Raise ValueError if attention adds neither a mask of merged tokens nor the weights of merged keys."""
    found = implementation(attention_of(block))
    if found not in BIASED:
        raise ValueError(
            f"attn_implementation={found!r} takes neither an attention mask of merged tokens nor the bias of "
            f"proportional_attention=True in {type(block).__name__}. {REMEDY}, or set "
            "model.algm.proportional_attention = False and pass no mask"
        )


def check_maps(block: Any, tokens: LayerTokens, given: dict[str, Any]) -> None:
    """Raise ValueError if attention maps are asked for where merged layers have none to give."""
    if returns_tuple(block) and given.get("output_attentions"):
        raise ValueError(
            f"output_attentions=True: {type(block).__name__} returns its attention map beside its tokens, where those "
            "of merged layers do not fit. Call remove_algm first"
        )
    if tokens.image is not None and gives_maps(attention_of(block), given):
        raise ValueError(
            "output_attentions=True: the images of this batch are left with different numbers of tokens, whose "
            "attention maps make no batch. Set model.algm.batch = 'min', or give one image at a time"
        )


def gives_maps(attention: Any, given: dict[str, Any]) -> bool:
    """Return whether attention maps are asked for: by an argument, the config, or what collects them from outside."""
    module = inner_attention(attention)
    config = getattr(module, "config", None)
    asked = given.get("output_attentions", getattr(config, "output_attentions", False))
    return asked or is_wrapped(module) or any(map(collects_maps, module._forward_hooks.values()))


def collects_maps(hook: Any) -> bool:
    """Return whether a hook is the one that transformers leaves on attention for good, and collects maps now."""
    collector = getattr(hook, "__globals__", {}).get("_active_collector")
    return collector is not None and "attentions" in (collector.get() or ())
