"""Refuse blocks by the parts and arguments that they have, whatever the path of their forward: vendored copies."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from .refused import GRIDDED, PACKED, SAMPLED, WINDOWED
from .unpatched import unpatched

# What a forward that cuts a grid into windows calls: SAM's and ViTDet's window_partition, Swin's window_reverse.
CUTS = re.compile(r"window_?(un)?(partition|reverse|merge)|partition_?window", re.IGNORECASE)


def why_by_parts(block: nn.Module) -> str | None:
    """Return why a block cannot be patched, if its parts or the arguments of its forward say so; None if not."""
    attentions = attentions_of(block)
    if any(hasattr(part, "rel_pos_h") and hasattr(part, "rel_pos_w") for part in attentions):
        return GRIDDED
    if any(map(cuts_windows, (block, *attentions))):
        return WINDOWED
    if any(argument_of(part, "cu_seqlens", required=True) for part in (block, *attentions)):
        return PACKED
    if attentions and argument_of(block, "reference_points"):
        return SAMPLED
    return None


def attentions_of(block: nn.Module) -> list[nn.Module]:
    """Return the parts of a block that are attention by their names."""
    return [part for name, part in block.named_children() if re.search("attn|attention", name)]


def cuts_windows(module: nn.Module) -> bool:
    """Return whether a module's forward cuts windows; those whose ``window_size`` is zero do not."""
    names = getattr(forward_of(module), "__code__", None)
    return bool(getattr(module, "window_size", True)) and names is not None and any(map(CUTS.search, names.co_names))


def argument_of(module: nn.Module, name: str, required: bool = False) -> bool:
    """Return whether a module's forward has an argument of this name, and no default for it if it is required."""
    forward = forward_of(module)
    found = inspect.signature(forward).parameters.get(name) if inspect.isfunction(forward) else None
    return found is not None and (not required or found.default is found.empty)


def forward_of(module: nn.Module) -> Any:
    """Return the forward of a module's own class without its decorators; None if TorchScript compiled it."""
    forward: Any = getattr(unpatched(type(module)), "forward", None)
    return inspect.unwrap(forward)
