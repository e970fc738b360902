"""Keep what the original tokens lose at merges, and add it to the copies that a full grid would be."""

from __future__ import annotations

import torch
from torch import Tensor, no_grad

from .plan import Plan
from .token_map import TokenMap


def lost_with(plan: Plan, before: TokenMap | None, x: Tensor, merged: Tensor, lost: Tensor | None) -> Tensor:
    """Return what original tokens have lost so far and at a merge: the token that held each, less the one that does.

    Without gradients. Zero for tokens that no merge touched; the mean over the original tokens of a group is zero, as
    the merged token is their mean.

    Args:
        before: from the original tokens to those that merge; None: they are the original tokens.
        x: [B, L, D], or [1, T, D] if packed; the tokens that merge.
        merged: what the plan made of them.
        lost: so far; None: nothing.

    Returns:
        [B, P+N, D], at least float32: sums over many merges would be rounded in half precision.
    """
    step, packing, dtype = plan.step, plan.before, at_least_float32(x)
    with no_grad():
        x = x if packing is None else packing.unpack(x)
        merged = merged if step.packing is None else step.packing.unpack(merged)
        here = x.to(dtype) - step.unmerge(merged.to(dtype))
        here = here if before is None else before.unmerge(here)
        return here if lost is None else lost + here


def restored(copies: Tensor, lost: Tensor) -> Tensor:
    """Return copies of merged tokens [B, P+N, D] with what each original token lost, in the dtype of the copies."""
    return (copies + lost).to(copies.dtype)


def parted(token_map: TokenMap, full: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each group of a full grid, and what the grid has beside them.

    This undoes `restored`, to rounding: the mean of what a group's tokens lost is zero. Tokens alone in their group and
    groups of equal tokens pass through bit for bit. Gradients flow to the means alone.

    Args:
        full: [B, P+N, D].

    Returns:
        [B, P+M, D] in the dtype of ``full``; [B, P+N, D] at least float32.
    """
    tokens = full.to(at_least_float32(full))
    first = token_map.take(tokens)
    means = (first + token_map.merge(tokens - token_map.unmerge(first))).to(full.dtype)
    with no_grad():
        return means, tokens - token_map.unmerge(means)


def at_least_float32(x: Tensor) -> torch.dtype:
    """Return float32, or the dtype of ``x`` if that is no narrower."""
    return torch.promote_types(x.dtype, torch.float32)
