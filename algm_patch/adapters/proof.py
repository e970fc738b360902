"""Prove on random tokens that an adapter's halves are what a block computes.

A copy of the block, with random weights, is run beside the halves:

1. The halves are the forward, in eval mode and in training.
2. On merged tokens in another order, each with its size, the halves give what the forward gives for the copies that
   were merged: attention weighs by sizes, and nothing goes by places or numbers of tokens that ALGM does not know.
3. Nothing is left behind that another call could find.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from ..core.token_map import TokenMap
from .by_itself import by_itself, devices_of, seeded
from .cost import layers_in
from .held_rope import holds_places
from .proof_key import state_of
from .random_copy import normal, random_copy
from .structure import Call, Structure
from .windows import MOST, longest_window

# Images, and patches of each: in no square.
IMAGES, PATCHES = 2, 6
# Of one image for attention alone, which may go by their number without saying so.
MANY = 64
# How much sums in another order may differ, of the largest number.
ROUNDED = 1e-4
BY_PLACES = "a permutation of the patches does not permute its output: it depends on places ALGM does not know"


def prove(adapter: type[Structure], block: nn.Module) -> str | None:
    """Return what differs between a block and the halves of an adapter, or why it cannot be tried; None if proved."""
    reason = None
    for device in devices_of(block):
        with by_itself(device):
            try:
                return adapter.refusal(block) or why_not(adapter, block, device)
            except Exception as error:
                reason = f"tried on random tokens, it raised {type(error).__name__}: {error}"
    return reason


def why_not(adapter: type[Structure], block: nn.Module, device: torch.device) -> str | None:
    """Return why a block is not what the halves of an adapter are; None if it is."""
    window = longest_window(block)
    if window > MOST:
        return f"one of its modules has a window of {window} tokens: attention may see part of them only"
    own, patches = random_copy(block).to(device), PATCHES + 2 * window
    calls = adapter.examples(own, adapter.prefix + patches, adapter.prefix)
    return next(filter(None, (differs(adapter, own, call, patches) for call in calls)), None)


def differs(adapter: type[Structure], block: nn.Module, call: Call, patches: int) -> str | None:
    """Return in what the halves differ from the forward in one call; None if in nothing."""
    args, kwargs = call
    token_map = merge_of(adapter, block, call, patches)
    generator = torch.Generator("cpu").manual_seed(1)
    width = layers_in(block)[0].inputs
    x = token_map.unmerge(normal((*token_map.sizes.shape, width), generator).to(token_map.sizes.device))
    before = state_of(block)
    with torch.no_grad():
        # Merged tokens go first: what a call leaves behind for the next would not fit it.
        merged = run_merged(adapter, block, x, token_map, call)
        output = block(x.clone(), *args, **kwargs)
        halves = run_halves(adapter, block, x, LayerTokens(None, None, adapter.prefix), call)
        if (reason := differ(adapter.pack(block, halves), output, adapter.rounding)) is not None:
            return f"the halves differ from its forward {reason}"
        gap = distance(merged, token_map.take(tokens_of(output)))
        if gap > ROUNDED:
            return why_merged_differ(adapter, block, x, call, gap)
    if (left := changed(before, state_of(block))) is not None:
        return f"its forward leaves {left} behind, in which merged tokens would not be known"
    block.train()
    x = x.flip(0)  # for whatever was kept of these images
    output = seeded(x.device, lambda: block(x.clone(), *args, **kwargs))
    halves = seeded(x.device, lambda: run_halves(adapter, block, x, LayerTokens(None, None, adapter.prefix), call))
    block.eval()
    if (reason := differ(adapter.pack(block, halves), output, adapter.rounding)) is not None:
        return f"the halves differ from its forward {reason} in training"
    if (left := changed(before, state_of(block))) is not None:
        return f"in training, its forward changes {left} by its tokens, of which merged ones would count once"
    with torch.no_grad():
        return (
            why_not_alone(adapter, block, x)
            or why_not_packed(adapter, block, x, call)
            or why_not_many(adapter, block, call, width)
        )


# -- merged tokens


def merge_of(adapter: type[Structure], block: nn.Module, call: Call, patches: int) -> TokenMap:
    """Return the map of a merge whose result can be foretold, of groups in another order than their tokens.

    It merges the last three patches; or, if attention is not told of sizes, all tokens two by two. If it is told of
    places instead, which no such two share, it merges none.
    """
    tokens = torch.arange(adapter.prefix + patches)
    if adapter.takes_mask(block):
        return reordered(tokens.clamp(max=len(tokens) - 3), adapter.prefix)
    if call == ((), {}):
        return reordered(torch.arange(2 * patches) // 2, 0)
    return reordered(tokens, adapter.prefix)


def reordered(labels: Tensor, prefix: int) -> TokenMap:
    """Return the map with these labels [L], the groups behind the prefix in another order for each image."""
    count, generator = int(labels.max()) + 1, torch.Generator("cpu").manual_seed(2)
    orders = [
        torch.cat(
            [
                torch.arange(prefix),
                torch.randperm(count - prefix, generator=generator, device="cpu").to(labels.device) + prefix,
            ]
        )[labels]
        for _ in range(IMAGES)
    ]
    sizes = [order.bincount(minlength=count).float() for order in orders]
    return TokenMap(torch.stack(orders), torch.stack(sizes))


def run_merged(adapter: type[Structure], block: nn.Module, x: Tensor, token_map: TokenMap, call: Call) -> Tensor:
    """Return what the halves make of merged tokens."""
    bias = token_map.key_bias if adapter.takes_mask(block) else None
    return run_halves(adapter, block, token_map.take(x), LayerTokens(token_map, bias, adapter.prefix), call)


def why_merged_differ(adapter: type[Structure], block: nn.Module, x: Tensor, call: Call, gap: float) -> str:
    """Return why merged tokens differ, by so much, from the copies that they hold."""
    args, kwargs = call
    permuted = reordered(torch.arange(x.shape[1]), adapter.prefix)
    found = run_halves(adapter, block, permuted.take(x), LayerTokens(permuted, None, adapter.prefix), call)
    if distance(found, permuted.take(tokens_of(block(x.clone(), *args, **kwargs)))) > ROUNDED:
        return BY_PLACES
    return f"merged tokens differ from the copies that they hold by {gap:.1g} of its output: it depends on their number"


def why_not_alone(adapter: type[Structure], block: nn.Module, x: Tensor) -> str | None:
    """Return why a merge of some tokens alone would change others, in the MLP half; None if it would not.

    Args:
        x: any tokens.
    """
    together, alone = adapter.mlp_half(block, x)[0, :, None], adapter.mlp_half(block, x[0, :, None])
    return None if distance(alone, together) <= ROUNDED else "behind attention, its tokens depend on each other"


def why_not_packed(adapter: type[Structure], block: nn.Module, x: Tensor, call: Call) -> str | None:
    """Return why images in one sequence would mix, though attention keeps them apart; None if they would not."""
    args, kwargs = call
    if not adapter.packs(block, *args, **kwargs):
        return None
    apart = torch.block_diag(*x.new_ones(x.shape[0], x.shape[1], x.shape[1])).log()[None, None]
    packed, each = LayerTokens(None, apart, adapter.prefix), LayerTokens(None, None, adapter.prefix)
    together = run_halves(adapter, block, x.flatten(0, 1)[None], packed, call)
    if distance(together, run_halves(adapter, block, x, each, call).flatten(0, 1)[None]) <= ROUNDED:
        return None
    return "before or behind attention, its tokens depend on others, such as the first of all"


def why_not_many(adapter: type[Structure], block: nn.Module, call: Call, width: int) -> str | None:
    """Return in what the attention half goes by the number of tokens, if that shows with many; None if it does not.

    A block that is told of places, or holds them, is not tried: those in hand are for few.
    """
    if call != ((), {}) or holds_places(block):
        return None
    token_map = merge_of(adapter, block, call, MANY).of_image(0)
    generator = torch.Generator("cpu").manual_seed(4)
    x = token_map.unmerge(normal((*token_map.sizes.shape, width), generator).to(token_map.sizes.device))
    bias = token_map.key_bias if adapter.takes_mask(block) else None
    whole = adapter.attention_half(block, x, LayerTokens(None, None, adapter.prefix))
    merged = adapter.attention_half(block, token_map.take(x), LayerTokens(token_map, bias, adapter.prefix))
    gap = distance(merged, token_map.take(whole))
    if gap <= ROUNDED:
        return None
    return (
        f"of {MANY} tokens, merged ones differ from the copies that they hold by {gap:.1g}: it depends on their number"
    )


def run_halves(adapter: type[Structure], block: Any, x: Tensor, tokens: LayerTokens, call: Call) -> Tensor:
    """Return what the adapter's halves make of tokens."""
    args, kwargs = call
    return adapter.mlp_half(block, adapter.attention_half(block, x, tokens, *args, **kwargs))


# -- comparing


def differ(found: Any, expected: Any, rounding: float) -> str | None:
    """Return in what an output differs from the one that is expected; None if in nothing."""
    if type(found) is not type(expected):
        return f"in what they return: a {type(found).__name__}, and it a {type(expected).__name__}"
    if isinstance(found, tuple | list):
        if len(found) != len(expected):
            return f"in what they return: {len(found)} outputs, and it {len(expected)}"
        return next(filter(None, map(differ, found, expected, [rounding] * len(found))), None)
    if not isinstance(found, Tensor):
        return None if found == expected else f"in what they return: {found!r:.80}, and it {expected!r:.80}"
    gap = distance(found, expected)
    return None if gap <= rounding else f"by {gap:.1g} of its output"


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, of the largest number that is expected; infinity if there is none."""
    if found.shape != expected.shape:
        return torch.inf
    gap = float((found - expected).detach().abs().max() / expected.detach().abs().max())
    return gap if gap == gap else torch.inf


def changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the path of the first attribute that is not what it was; None if there is none."""
    return next((name for name in {**before, **after} if before.get(name, ...) != after.get(name, ...)), None)


def tokens_of(output: Any) -> Tensor:
    """Return the tokens in a block's output."""
    return output[0] if isinstance(output, tuple | list) else output
