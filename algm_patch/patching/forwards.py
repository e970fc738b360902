"""The forwards that patched modules have in the place of their own, and the walk of the tokens through them.

1. The patch projection leaves a grid (H, W), which opens a forward pass.
2. The trunk, or a module between it and the blocks, says which blocks the method that runs them reads.
3. Each block (`run_block`) finds its pass, takes one token per group, attends, merges what is to merge,
   runs its MLP, and gives back its tokens, or the full grid if something reads it.
4. Everything after the last block runs as ever; a decoder that can run on merged tokens is unmerged behind its head.

Something may keep such a forward of a module from which the patch was removed (accelerate's hooks, or a user's
``model.forward = model.forward_features``). Without its part it runs what the module's own class does.
"""

from __future__ import annotations

import inspect
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ..adapters.registry import Reader
from ..core.compiling import by_frames, refuse_fx_trace, refuse_jit_trace
from .bookkeeping import EAGER, TRACED, UNTRACED, Bookkeeping
from .bypassed import check_over
from .features import attention_half_and_features
from .not_the_grid import alone, refuse_tuple
from .restoring import restoring_owner, restoring_trunk
from .runtime import Runtime
from .signatures import looks_like

# Methods that run the blocks, by name, each with the function that tells which blocks a call of it reads.
Readers = dict[str, Reader]


def run_block(bookkeeping: Bookkeeping, original: Any, block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run a patched block: attention half, merge, MLP half; or merge last.

    Args:
        original: the forward of the block's own class.
    """
    part = block.algm_part
    adapter = part.adapter
    forward_pass, here, x = bookkeeping.open_block(part.runtime, part.layer, x)
    if here.idle:
        output = original(block, x, *args, **kwargs)
        bookkeeping.close_block(forward_pass, here, output[0] if isinstance(output, tuple) else output)
        return output
    if bookkeeping is EAGER and part.weighing is not None and here.tokens.key_bias is not None:
        adapter = part.weighing.watch(adapter)
    settings, features = forward_pass.settings, None
    compare = settings.compare if here.merges and not here.plans else "token"
    if here.before is not None and here.before.packing is not None:
        x, features = bookkeeping.packed_attention_half(adapter, compare, block, x, here.tokens, *args, **kwargs)
    elif compare == "token":
        x = adapter.attention_half(block, x, here.tokens, *args, **kwargs)
    else:
        x, features = attention_half_and_features(adapter, compare, block, x, here.tokens, *args, **kwargs)
    if here.merges and settings.place == "before_mlp":
        x = bookkeeping.merge(forward_pass, part.layer, x, features)
    token_map = here.after if settings.place == "before_mlp" else here.before
    if block.training and token_map is not None and token_map.packing is not None:
        x = bookkeeping.padded_mlp_half(adapter, block, x, token_map.packing)
    else:
        x = adapter.mlp_half(block, x)
    if here.merges and settings.place == "after_mlp":
        x = bookkeeping.merge(forward_pass, part.layer, x, features)
    return adapter.pack(block, bookkeeping.close_block(forward_pass, here, x))


# A compiler that cannot have the merges in its graph leaves this frame alone, and compiles the halves it calls.
run_block_by_halves = by_frames(run_block)


def bookkeeping_of(runtime: Runtime) -> Bookkeeping:
    """Return the functions around what a module computes, traced in a graph of the whole forward pass."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        refuse_jit_trace()
    return TRACED if torch.compiler.is_compiling() and runtime.in_graph() else UNTRACED


def block_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the forward of a patched block."""
    first = next(islice(inspect.signature(original.forward).parameters, 1, None), "")  # after the module itself

    @looks_like(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            refuse_jit_trace()
        part = getattr(self, "algm_part", None)
        if part is None or (not args and first not in kwargs):
            return original.forward(self, *args, **kwargs)  # which raises its own TypeError if nothing is given
        x, *others = args or (kwargs.pop(first),)
        if isinstance(x, list):
            x, *others = alone(self, x, *others)
            return [forward(self, x, *others, **{name: alone(self, value)[0] for name, value in kwargs.items()})]
        if isinstance(x, tuple):
            refuse_tuple(self, x)
        if isinstance(x, Proxy):  # a model around the patched one is traced
            refuse_fx_trace()
        runtime = part.runtime
        if torch.compiler.is_compiling() and runtime.in_graph() and runtime.passes.here:
            return run_block(TRACED, original.forward, self, x, *others, **kwargs)
        bookkeeping = UNTRACED if torch.compiler.is_compiling() else EAGER
        return run_block_by_halves(bookkeeping, original.forward, self, x, *others, **kwargs)

    return {"forward": forward}


def projection_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the forward of a patched patch projection."""

    @looks_like(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        part = getattr(self, "algm_part", None)
        output = original.forward(self, *args, **kwargs)
        if part is not None:
            for runtime, adapter in part.feeds:
                bookkeeping_of(runtime).open_pass(runtime, adapter, self, output, *args, **kwargs)
        return output

    return {"forward": forward}


def embedding_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the forward of a module that cuts an image into patches, of which a linear layer makes tokens."""
    return {"forward": noting_image(original.forward)}


def noting_image(method: Any) -> Any:
    """Return a method that first notes the image that it is given."""

    @looks_like(method)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        part = getattr(self, "algm_part", None)
        if part is not None:
            bookkeeping_of(part.runtime).note_image(part.runtime, (*args, *kwargs.values()))
        return method(self, *args, **kwargs)

    return forward


def trunk_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the methods of a patched trunk."""

    methods = {**owner_methods(original, readers), **driver_methods(original, readers)}
    return {**methods, "__setstate__": restoring_trunk(original)}


def cutting_trunk_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the methods of a patched trunk that cuts the image into patches itself."""
    methods = trunk_methods(original, readers)
    return {**methods, "forward": noting_image(methods["forward"])}


def owner_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the methods of a trunk, or a module around trunks: after its forward their passes are over."""

    @looks_like(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(args, Proxy):
            refuse_fx_trace()
        output = original.forward(self, *args, **kwargs)
        part = getattr(self, "algm_part", None)
        if part is not None:
            for runtime in part.runtimes:
                check_over(runtime, self)
        return output

    return {"__setstate__": restoring_owner(original), "forward": forward}


def driver_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the methods that run the blocks, and are known to read only some."""
    return {name: telling_what_it_reads(getattr(original, name), blocks_read) for name, blocks_read in readers.items()}


def telling_what_it_reads(method: Any, blocks_read: Reader) -> Any:
    """Return a method that runs the blocks, which says first whose output it reads."""

    def read(bookkeeping: Bookkeeping, self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = self.algm_part.runtime
        passes = runtime.passes
        known = blocks_read(self, *args, **kwargs)
        outer, passes.taps = passes.taps, None if known is None else frozenset(known)
        try:
            output = method(self, *args, **kwargs)
            bookkeeping.close_pass(runtime, passes, output)
        finally:
            passes.taps = outer
            passes.end()
        return output

    read_by_frames = by_frames(read)

    @looks_like(method)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        part = getattr(self, "algm_part", None)
        if part is None:
            return method(self, *args, **kwargs)
        if torch.compiler.is_compiling() and part.runtime.in_graph():
            return read(TRACED, self, *args, **kwargs)
        return read_by_frames(UNTRACED, self, *args, **kwargs)

    return reading


def decoder_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the forward of a decoder that runs on merged tokens."""

    @looks_like(original.forward)
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        part = getattr(self, "algm_part", None)
        if part is None:
            return original.forward(self, x, *args, **kwargs)
        return bookkeeping_of(part.runtime).decode(part.runtime, partial(original.forward, self), x, *args, **kwargs)

    return {"forward": forward}


def head_methods(original: Any, readers: Readers) -> dict[str, Any]:
    """Return the forward of the module in a decoder whose results are unmerged."""

    @looks_like(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        part = getattr(self, "algm_part", None)
        output = original.forward(self, *args, **kwargs)
        return output if part is None else bookkeeping_of(part.runtime).unmerge_decoded(part.runtime, output)

    return {"forward": forward}


METHODS = {
    "block": block_methods,
    "projection": projection_methods,
    "embedding": embedding_methods,
    "trunk": trunk_methods,
    "cutting trunk": cutting_trunk_methods,
    # Of several sequences of blocks that a trunk owns, it is not known which one its methods run.
    "trunk of several": lambda original, _: trunk_methods(original, {}),
    "cutting trunk of several": lambda original, _: cutting_trunk_methods(original, {}),
    "owner": owner_methods,
    "driver": driver_methods,
    "decoder": decoder_methods,
    "head": head_methods,
}
