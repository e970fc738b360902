"""Say why there is no ViT in a model that can be patched, or why a block cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from ..adapters.registry import path_of, proof_of, refusal_of, registered_adapter, unpatched
from .naming import class_name, full_name, names

SEQUENCES = (nn.Sequential, nn.ModuleList)


def why_none(model: nn.Module, found: Iterable[str]) -> str:
    refused = next(filter(refusal_of, model.modules()), None)
    if refused is not None:
        return why_unknown(refused)
    if found:
        return f"no patch projection with a regular grid leads to the blocks in {names(found)}"
    counts = Counter(full_name(module) for module in model.modules())
    blocks = [
        child
        for sequence in model.modules()
        if isinstance(sequence, SEQUENCES)
        for child in sequence.children()
        if not isinstance(child, SEQUENCES) and counts[full_name(child)] > 1 and has_attention(child)
    ]
    if not blocks:
        return "there is no sequence of transformer blocks in it"
    return why_unknown(max(blocks, key=lambda block: counts[full_name(block)]))


def why_unknown(block: nn.Module) -> str:
    reason = refusal_of(block)
    if reason is not None:
        return f"in {full_name(block)}, {reason}"
    if any(map(registered_adapter, block.modules())):
        return f"{full_name(block)} wraps a block. Call apply_algm before the blocks are wrapped"
    forward = path_of(unpatched(type(block)).forward)
    if (differed := proof_of(block).reason) is not None:
        return (
            f"{full_name(block)} has the parts of a block that ALGM knows, but {differed}. If you know where its "
            "attention ends and its MLP begins, write an Adapter and register it: see algm_patch.register"
        )
    return (
        f"{full_name(block)} computes its output in {forward}, of which ALGM does not know where attention ends and "
        "the MLP begins. If you do, write an Adapter and register it: see algm_patch.register"
    )


def has_attention(module: nn.Module) -> bool:
    names = {f"{name} {class_name(part)}".lower() for name, part in module.named_modules()}
    return any(word in name for name in names for word in ("attention", "attn", "qkv"))
