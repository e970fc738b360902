"""Say why there is no ViT in a model that can be patched, or why a block cannot."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable

from torch import nn

from ..adapters.base import Adapter
from ..adapters.refused_parts import forward_of
from ..adapters.registry import forward_path, is_scripted, proof_of, refusal_of, registered_adapter
from .find_projection import places_of
from .naming import class_name, full_name, names

SEQUENCES = (nn.Sequential, nn.ModuleList)
# Attention, by its own name or that of its class.
NAMES = re.compile("attention|attn|qkv")
# Parts and arguments of a block whose tokens attend to others than themselves, as a decoder's do.
OTHERS = re.compile(r"cross|encoder_attn|encoder_hidden_states|encdec|multihead_attn|^memory$|^context$")


def why_none(model: nn.Module, found: Iterable[str]) -> str:
    """Return why no ViT in a model can be patched.

    Args:
        found: paths of the sequences of blocks that are known, or seem to be, but lack a patch projection.
    """
    refused = refused_block(model)
    if refused is not None:
        return why_unknown(refused)
    if found:
        return f"no patch projection with a regular grid leads to the blocks in {names(found)}"
    sequences = sequences_of_blocks(model)
    if not sequences:
        if any(NAMES.search(class_name(part).lower()) for part in model.modules()):
            return (
                "its attention computes on maps [B, D, H, W], and there are no transformer blocks on tokens [B, L, D]"
            )
        return "there is no sequence of transformer blocks in it"
    embedded = places_of(model, dict.fromkeys(sequences, Adapter))
    if not embedded:
        return (
            f"no patch projection leads to its transformer blocks, in {names(sequences)}: ALGM finds no convolution "
            "that cuts an image into their tokens"
        )
    return why_unknown(likeliest([sequences[path] for path in embedded]))


def why_none_of(model: nn.Module, found: Iterable[str]) -> str | None:
    """Return why none of several sequences of blocks is proved, or what is refused beside them; None if it is just one.

    Args:
        found: their paths.
    """
    refused = refused_block(model)
    if refused is not None:
        return why_unknown(refused)
    sequences = [list(model.get_submodule(path).children()) for path in found]
    return why_unknown(likeliest(sequences)) if len(sequences) > 1 else None


def refused_block(model: nn.Module) -> nn.Module | None:
    """Return the first block in a model that is known and refused; of what is scripted, what has attention."""
    refused = filter(refusal_of, model.modules())
    return next((block for block in refused if not is_scripted(block) or names_attention(block)), None)


def likeliest(sequences: Iterable[list[nn.Module]]) -> nn.Module:
    """Return the block, of those in several sequences, that a ViT is likeliest to be made of: of the most common class.

    A decoder's comes after all others.
    """
    blocks = [block for sequence in sequences for block in sequence]
    counts = Counter(map(full_name, blocks))
    return max(blocks, key=lambda block: (not attends_to_others(block), counts[full_name(block)]))


def why_unknown(block: nn.Module) -> str:
    """Return why a block has no adapter, or one that refuses it."""
    reason = refusal_of(block)
    if reason is not None:
        return f"in {full_name(block)}, {reason}"
    if any(map(registered_adapter, block.modules())):
        return f"{full_name(block)} wraps a block. Call apply_algm before the blocks are wrapped"
    forward = forward_path(block)
    if (differed := proof_of(block).reason) is not None:
        return (
            f"{full_name(block)} has the parts of a block that ALGM knows, but {differed}. If you know where its "
            "attention ends and its MLP begins, write an Adapter and register it: see algm_patch.register"
        )
    if attends_to_others(block):
        return f"in {full_name(block)}, the tokens attend to others than their own, as a decoder's do"
    return (
        f"{full_name(block)} computes its output in {forward}, of which ALGM does not know where attention ends and "
        "the MLP begins. If you do, write an Adapter and register it: see algm_patch.register"
    )


def sequences_of_blocks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the transformer blocks in each sequence of a model that has some, by path."""
    counts = Counter(full_name(module) for module in model.modules())
    found = {}
    for path, sequence in model.named_modules():
        if isinstance(sequence, SEQUENCES):
            children = [child for child in sequence.children() if not isinstance(child, SEQUENCES)]
            blocks = [child for child in children if counts[full_name(child)] > 1 and has_attention(child)]
            if blocks:
                found[path] = blocks
    return found


def has_attention(module: nn.Module) -> bool:
    """Return whether a module has attention over tokens: of linear layers, not of convolutions."""
    linear = (nn.Linear, nn.MultiheadAttention)
    return any(
        NAMES.search(name.lower()) or NAMES.search(class_name(part).lower())
        for name, part in module.named_modules()
        if any(isinstance(layer, linear) for layer in part.modules())
    )


def names_attention(module: nn.Module) -> bool:
    """Return whether a part of a module has the name of attention."""
    return any(NAMES.search(name.lower()) for name, _ in module.named_modules())


def attends_to_others(block: nn.Module) -> bool:
    """Return whether a block is given other tokens than its own, by the names of its parts and arguments."""
    forward = forward_of(block)
    arguments = inspect.signature(forward).parameters if inspect.isfunction(forward) else ()
    return any(OTHERS.search(name.lower()) for name in (*dict(block.named_children()), *arguments))
