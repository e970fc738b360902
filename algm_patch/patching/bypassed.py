"""Say that a forward pass went past the blocks, or lost track of its tokens."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .forward_pass import ForwardPass
from .losses import let_go
from .naming import class_name
from .runtime import Runtime
from .tracker import NOT_IN_BACKWARD, Passes, backward_pass, memory_of
from .unread_grid import make_unread

# So many patch embeddings in a row without a block are no crops or frames that go through the blocks together.
MANY_IDLE = 32


def check_over(runtime: Runtime, owner: nn.Module | None = None) -> None:
    """Warn, once, if the newest pass of this thread, which is over, went past blocks that were to merge.

    Args:
        owner: the module whose forward ended it, if that is known.
    """
    if torch.compiler.is_compiling() or backward_pass() != NOT_IN_BACKWARD:
        return
    past = runtime.threads.passes.newest
    if past is None or past.over:
        return
    if past.waited:
        make_unread(past.blocks.values())  # of a loop that ended before the last block
    let_go(past.blocks, past.recomputed)
    if past.merges.keys() <= past.blocks.keys():
        past.over = True
    elif missing := passed_by(past):
        warn_of_passed_by(runtime, past, missing, owner)


def passed_by(past: ForwardPass) -> list[int]:
    """Return the blocks (from 0) that were to merge and did not run, of a pass that is over.

    Empty if a method that is known ended the pass early, after some of them.
    """
    missing = sorted(past.merges.keys() - past.blocks.keys())
    ended_early = past.taps is not None and len(missing) < len(past.merges) and max(past.blocks) < min(missing)
    return [] if ended_early else missing


def warn_of_passed_by(runtime: Runtime, past: ForwardPass, missing: list[int], owner: nn.Module | None = None) -> None:
    """Warn, once, of a forward pass that went past these blocks (from 0), or past all if none ran."""
    if not runtime.warned:
        runtime.warned = True
        warnings.warn(no_merge_in(runtime.model_name, past, missing, owner), stacklevel=2)


def no_merge_in(model: str, past: ForwardPass, missing: list[int], owner: nn.Module | None = None) -> str:
    """Return what to do about a forward pass that went past these blocks (from 0), or past all if none ran."""
    if past.taps is not None and past.blocks and missing and max(past.blocks) < missing[0]:
        return (
            f"{model} ended a forward pass after block {max(past.blocks) + 1}, before any block that merges, so "
            "nothing merged. Set model.algm.clap_layer or gbm_layers to blocks up to there; or call remove_algm(model)"
        )
    if past.blocks:
        numbers = ", ".join(str(layer + 1) for layer in missing)
        found = f"{model} ended a forward pass without block {numbers}, so nothing merged there"
        remedy = "set model.algm.clap_layer and gbm_layers to blocks that run"
    else:
        found = f"the patch embedding of {model} ran, but none of its blocks did, so nothing merged"
        remedy = "call remove_algm(model)"
    where = "" if owner is None else f", in {class_name(owner)}.forward or what it calls,"
    return (
        f"{found}. Code that calls the parts of a block itself (its norms, attention, MLP){where} goes past the patch: "
        "let it call the block, as block(x), with what attention is given, such as block(x, attn_mask=mask). If the "
        f"model is to run like this, {remedy}"
    )


def why_untraced(passes: Passes, x: Tensor) -> str:
    """Return why the pass of a block's input ``x`` is not known, and what to do."""
    if backward_pass() != NOT_IN_BACKWARD:
        return (
            "They were recomputed in the backward pass from a copy of the input (activation offloading, or a dtype "
            "that changes before each block, such as fully_shard's output_dtype?)"
        )
    if memory_of(x) and passes.that_left(x) is None:
        return (
            "Another patched model took or left them. Give each model the image, or run the patch embedding of "
            "this one before its blocks"
        )
    if passes.current is not None:
        return (
            "In the forward pass under way it ran already. If several passes take turns, hand the tokens from "
            "block to block as they are, or run one pass after the other"
        )
    return "The patch embedding did not run before (was it replaced? then call apply_algm again)"
