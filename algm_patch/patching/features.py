"""Observe the queries, keys or values that attention makes of its tokens, without making them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapters.base import Adapter
from ..adapters.instance_forward import is_wrapped, rebind
from ..core.layer_tokens import LayerTokens


def attention_half_and_features(
    adapter: type[Adapter], compare: str, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the adapter's attention half [B, L, D], and the features [B, L, D'] of its tokens that ``compare`` names.

    None for "token": the tokens themselves. Features are without gradient.

    Raises:
        ValueError: if attention did not leave them, for all tokens, where the adapter says.
    """
    if compare == "token":
        return adapter.attention_half(block, x, tokens, *args, **kwargs), None
    seen: list[Tensor] = []
    path, third = adapter.features(block, compare) or ("", None)
    y = adapter.attention_half(observed(block, path, seen) if path else block, x, tokens, *args, **kwargs)
    if len(seen) > 1 and len({part.shape[1:] for part in seen}) == 1:  # of images on their own
        seen = [torch.cat(seen)]
    found = seen[0] if len(seen) == 1 else None
    if found is None or found.shape[:2] != x.shape[:2]:
        left = f"left {[list(part.shape) for part in seen]}" if seen else "was not called"
        raise ValueError(
            f"compare={compare!r} takes the output of {type(block).__name__}.{path}, which {left} where ALGM expected "
            f"[{x.shape[0]}, {x.shape[1]}, D], one for each token. Set model.algm.compare = 'token'"
        )
    return y, found if third is None else found.chunk(3, -1)[third]


def observed(module: Any, path: str, seen: list[Tensor]) -> Any:
    """Return a shallow copy of the module, in which the one at this path notes its output.

    A forward hook for the duration of a call would do the same, but no compiler traces that one is registered.
    """
    name, _, rest = path.partition(".")
    if name:
        other = object.__new__(type(module))
        other.__dict__.update(module.__dict__, **{name: observed(getattr(module, name), rest, seen)})
        if not is_wrapped(module):
            rebind(other)  # what was set there would run the module itself
        return other

    def observer(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        seen.append(output.detach())
        return output

    return observer
