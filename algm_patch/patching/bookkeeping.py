"""Keep the state of forward passes, around what the model computes."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapters.base import Adapter
from ..core.compiling import let_vary, traces_python, untraced
from .block_pass import BlockPass
from .bypassed import MANY_IDLE, check_over, warn_of_passed_by, why_untraced
from .decoding import decode, unmerge_decoded
from .fit import check_unchanged, runs_in_order
from .forward_pass import ForwardPass
from .halves import packed_attention_half, padded_mlp_half
from .hooks import reads_and_changes
from .linear_patches import grid_of_patches, note_image
from .losses import let_go
from .runtime import Runtime
from .tracker import Passes, remember
from .unread_grid import UnreadGrid, make_unread, may_wait


def open_pass(
    runtime: Runtime, adapter: type[Adapter], projection: Any, output: Any, *args: Any, **kwargs: Any
) -> None:
    """Begin a forward pass: the patch projection has left ``output`` of these arguments."""
    if isinstance(projection, nn.Linear):
        grid = grid_of_patches(runtime, projection, output)
    else:
        grid = adapter.grid(projection, output, *args, **kwargs)
    trunk, passes = runtime.trunk, runtime.passes
    vit = trunk.algm_part.vit
    sequence = trunk.get_submodule(vit.path)
    check_unchanged(sequence, vit.blocks, runtime.model_name)
    prefix = getattr(trunk, "num_prefix_tokens", 0)
    tensors = [each for each in (output if isinstance(output, tuple) else [output]) if isinstance(each, Tensor)]
    grids = tensors[0].shape[0] if tensors else 0  # an adapter that reads something else says nothing of them
    opened = ForwardPass(runtime.settings, grid, grids, prefix, runtime.depth, trunk.training, runs_in_order(sequence))
    runtime.traced.current = None
    passes.begin(opened)
    if passes.last is opened and not (torch.compiler.is_compiling() and traces_python()):
        runtime.latest = opened
    if not torch.compiler.is_compiling() and runtime.threads.passes.idle >= MANY_IDLE:
        warn_of_passed_by(runtime, opened, [])


def close_pass(runtime: Runtime, passes: Passes, x: object) -> None:
    """Note that the method that runs the blocks returns ``x``: tokens that are still merged remember their pass."""
    if runtime.settings.unmerge_at == "after_head" and passes.current is not None:
        remember(x, passes.current)
    check_over(runtime)


def open_block(runtime: Runtime, layer: int, x: Tensor) -> tuple[ForwardPass, BlockPass, Tensor]:
    """Return the pass that the input of a block (counted from 0) belongs to, and what the block is to do.

    Args:
        x: as the block is given it.

    Returns:
        The pass, the block's part in it, and its tokens, one per group.

    Raises:
        RuntimeError: if the pass cannot be told.
        ValueError: if the tokens are not those of its grid.
    """
    passes = runtime.passes if torch.compiler.is_compiling() else runtime.threads.passes
    merged = x.tokens if isinstance(x, UnreadGrid) and x.untouched else None
    forward_pass = passes.find(x if merged is None else merged, layer)
    if forward_pass is None:
        raise RuntimeError(
            f"block {layer + 1} of {runtime.model_name} was given tokens that ALGM cannot trace to a forward pass, so "
            f"it does not know their grid. {why_untraced(passes, x)}"
        )
    block = forward_pass.blocks.get(layer)
    if block is None:
        if not forward_pass.blocks:
            taps = passes.taps
            if taps is None and forward_pass is runtime.traced.current:
                taps = runtime.traced.taps  # of a graph that was broken
            forward_pass.taps = taps if forward_pass.in_order else None
            if runtime.settings.unmerge_at == "after_head":
                forward_pass.taps = without_last(runtime, forward_pass.taps)
        read, changed = reads_and_changes(runtime.vit.blocks, layer)
        # The last block's tokens stay merged for the head, hooks or not.
        read = read and not (layer + 1 == runtime.depth and runtime.settings.unmerge_at == "after_head")
        block = forward_pass.begin(layer, x, read, changed)
    if merged is not None and x.block.after is block.before:  # type: ignore[attr-defined]
        block.handed, block.lost = True, x.lost  # type: ignore[attr-defined]
        return forward_pass, block, merged.clone()  # which the block may write, while the grid is still to be read
    return forward_pass, block, x if block.regroup == "none" else block.enter(x)


def without_last(runtime: Runtime, taps: frozenset[int] | None) -> frozenset[int]:
    """Return the blocks (from 0) that must give back the full grid, without the last, whose tokens the head takes.

    Raises:
        RuntimeError: if every one must.
    """
    if taps is None:
        raise RuntimeError(
            f"unmerge_at='after_head': the blocks of {runtime.model_name} are run by a method that ALGM does not know, "
            "which may read merged tokens as a grid. Call apply_algm with unmerge_at='before_head'"
        )
    return taps - {runtime.depth - 1}


def close_block(forward_pass: ForwardPass, block: BlockPass, x: Tensor, eager: bool = False) -> Tensor:
    """Return what a block gives back, its tokens or the full grid, which remembers its pass.

    Args:
        eager: no compiler traces what runs the blocks: a grid that perhaps nothing reads is made when something does.
    """
    block.waits = waits = eager and block.waits and block.after is not None and may_wait(x)
    if not waits and block.after is not None and (block.gives_grid or block.last):
        x = block.leave(x, block.lost)
    remember(x, forward_pass)
    if block.last and forward_pass.waited:
        make_unread(forward_pass.blocks.values())  # what the caller has kept, for readers of any kind
    if waits:
        forward_pass.waited, x = True, UnreadGrid.of(x, block)
    if block.last:
        let_go(forward_pass.blocks, forward_pass.recomputed)
    return x


def open_halves(runtime: Runtime, layer: int, x: Tensor) -> tuple[ForwardPass, BlockPass, Tensor]:
    """Return what `open_block` does, for halves that are compiled for any number of tokens."""
    forward_pass, block, x = open_block(runtime, layer, x)
    forward_pass.by_halves = True
    token_map, key_bias = block.tokens.token_map, block.tokens.key_bias
    if token_map is not None:
        let_vary(token_map.sizes, 1)
    if key_bias is not None:
        let_vary(key_bias, 3)
    return forward_pass, block, let_vary(x, 1)


def merge_between_halves(forward_pass: ForwardPass, layer: int, x: Tensor, features: Tensor | None) -> Tensor:
    """Return what `ForwardPass.merge` does, for a half that is compiled for any number of tokens."""
    return let_vary(forward_pass.merge(layer, x, features), 1)


def close_halves(forward_pass: ForwardPass, block: BlockPass, x: Tensor) -> Tensor:
    """Return what `close_block` does, for a block that is compiled for any number of tokens."""
    x = close_block(forward_pass, block, x)
    return x if block.last or block.gives_grid else let_vary(x, 1)


class Bookkeeping(NamedTuple):
    """Hold the functions around what the model computes: as they are, or such that no compiler looks into them."""

    note_image: Any = note_image
    open_pass: Any = open_pass
    close_pass: Any = close_pass
    open_block: Any = open_block
    packed_attention_half: Any = packed_attention_half
    merge: Any = ForwardPass.merge
    padded_mlp_half: Any = padded_mlp_half
    close_block: Any = close_block
    decode: Any = decode
    unmerge_decoded: Any = unmerge_decoded


# In one graph of the whole forward pass.
TRACED = Bookkeeping()
# Else: compiled by itself, its state would be guarded, and compiled anew whenever it changes.
UNCOMPILED = Bookkeeping(*map(untraced, TRACED))
EAGER = UNCOMPILED._replace(close_block=partial(UNCOMPILED.close_block, eager=True))
# The same around halves that are compiled.
UNTRACED = UNCOMPILED._replace(
    open_block=untraced(open_halves), merge=untraced(merge_between_halves), close_block=untraced(close_halves)
)
