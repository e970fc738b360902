"""Prove on random tokens that an adapter's halves are what a block computes.

A copy of the block, with random weights, is run beside the halves:

1. the halves are the forward, in eval mode and in training;
2. a permutation of the patches permutes the output: the block knows of no places but those it is told of;
3. the halves on merged tokens, each with its size, give what the forward gives for the copies that were merged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from ..core.token_map import TokenMap
from .cost import layers_in
from .random_copy import normal, random_copy
from .structure import Call, Structure

IMAGES, PATCHES = 2, 10
# Of the largest number of the output. The halves call what the forward calls; other orders of sums round otherwise.
SAME, ROUNDED = 2e-6, 1e-4


def prove(adapter: type[Structure], block: nn.Module) -> str | None:
    """Return what differs between a block and the halves of an adapter; None if it is proved."""
    with by_itself():
        try:
            own = random_copy(block)
        except Exception as error:
            return f"it cannot be tried on random tokens ({type(error).__name__}: {error})"
        try:
            length = adapter.prefix + PATCHES
            x = normal((IMAGES, length, layers_in(own)[0].inputs), torch.Generator("cpu").manual_seed(1))
            for call in adapter.examples(own, length, adapter.prefix):
                reason = differs(adapter, own, x, call)
                if reason is not None:
                    return reason
        except Exception as error:
            return f"run by itself on random tokens {list(x.shape)}, it raised {type(error).__name__}: {error}"
    return None


def differs(adapter: type[Structure], block: nn.Module, x: Tensor, call: Call) -> str | None:
    """Return in what the halves differ from the forward in one call; None if in nothing."""
    args, kwargs = call
    with torch.no_grad():
        output = block(x, *args, **kwargs)
        expected = tokens_of(output)
        unmerged = LayerTokens(None, None, adapter.prefix)
        found = halves(adapter, block, x, unmerged, call)
        if type(packed := adapter.pack(block, found)) is not type(output):
            return f"its forward returns a {type(output).__name__}, and the halves a {type(packed).__name__}"
        if (gap := distance(found, expected)) > SAME:
            return f"the halves differ from its forward by {gap:.1g} of its output"
        permuted = permutation(x, adapter.prefix)
        found = halves(adapter, block, permuted.take(x), LayerTokens(permuted, None, adapter.prefix), call)
        if distance(found, permuted.take(expected)) > ROUNDED:
            return "a permutation of the patches does not permute its output: it depends on places ALGM does not know"
        if (reason := differs_merged(adapter, block, x, call)) is not None:
            return reason
        if distance(tokens_of(block(x, *args, **kwargs)), expected) > SAME:
            return "it gives another output for the same tokens the second time"
    block.train()
    found, expected = (
        seeded(lambda: halves(adapter, block, x, unmerged, call)),
        seeded(lambda: tokens_of(block(x, *args, **kwargs))),
    )
    block.eval()
    if (gap := distance(found, expected)) > SAME:
        return f"the halves differ from its forward by {gap:.1g} of its output in training"
    return None


def differs_merged(adapter: type[Structure], block: nn.Module, x: Tensor, call: Call) -> str | None:
    """Return in what merged tokens differ from their copies; None if in nothing."""
    args, kwargs = call
    weighs = adapter.takes_mask(block)
    merged = last_three(x) if weighs or args or kwargs or adapter.prefix else all_twice(x)
    first = merged.take(x)
    copies = merged.unmerge(first)
    if weighs or not (args or kwargs or adapter.prefix):
        tokens = LayerTokens(merged, merged.key_bias if weighs else None, adapter.prefix)
        found, expected = halves(adapter, block, first, tokens, call), tokens_of(block(copies, *args, **kwargs))
    else:  # attention of some copies more than of others, which is not told so, is another
        found, expected = adapter.mlp_half(block, first), adapter.mlp_half(block, copies)
    gap = distance(found, merged.take(expected))
    return None if gap <= ROUNDED else f"merged tokens differ from the copies that they hold by {gap:.1g} of its output"


def last_three(x: Tensor) -> TokenMap:
    """Return the map that merges the last three tokens of ``x``."""
    last = x.shape[1] - 3
    labels = torch.arange(x.shape[1], device="cpu").clamp(max=last).expand(x.shape[:2])
    sizes = torch.ones(x.shape[0], last + 1, device="cpu")
    sizes[:, last] = 3
    return TokenMap(labels, sizes)


def all_twice(x: Tensor) -> TokenMap:
    """Return the map that merges the tokens of ``x``, of which there is an even number, two by two."""
    labels = (torch.arange(x.shape[1], device="cpu") // 2).expand(x.shape[:2])
    return TokenMap(labels, torch.full((x.shape[0], x.shape[1] // 2), 2.0, device="cpu"))


def halves(adapter: type[Structure], block: Any, x: Tensor, tokens: LayerTokens, call: Call) -> Tensor:
    """Return what the adapter's halves make of tokens."""
    args, kwargs = call
    return adapter.mlp_half(block, adapter.attention_half(block, x, tokens, *args, **kwargs))


def permutation(x: Tensor, prefix: int) -> TokenMap:
    """Return the map that moves the patches of ``x`` and merges none."""
    patches = torch.randperm(x.shape[1] - prefix, generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    labels = torch.cat([torch.arange(prefix, device="cpu"), patches + prefix]).expand(x.shape[:2])
    return TokenMap(labels, torch.ones(x.shape[:2], device="cpu"))


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, of the largest number that is expected; infinity if shapes differ."""
    if found.shape != expected.shape:
        return torch.inf
    gap = float((found - expected).detach().abs().max() / expected.detach().abs().max())
    return gap if gap == gap else torch.inf


def tokens_of(output: Any) -> Tensor:
    """Return the tokens in a block's output."""
    return output[0] if isinstance(output, tuple | list) else output


def seeded(compute: Any) -> Any:
    """Return what is computed with random numbers of one seed."""
    torch.default_generator.manual_seed(0)
    random.seed(0)
    return compute()


@contextmanager
def by_itself() -> Iterator[None]:
    """Run what the caller's context does not change, and which leaves no trace in it."""
    state, others = torch.default_generator.get_state(), random.getstate()
    try:
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.default_generator.set_state(state)
        random.setstate(others)
