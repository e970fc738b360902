"""The queries, keys or values that attention makes of its tokens, without making them again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention import altered
from .base import Adapter
from .registry import path_of, unpatched

# Names of an attention's input projection, in the order of its thirds if it is one for all.
TOGETHER = "qkv"
APART = {"query": ("q_proj", "query"), "key": ("k_proj", "key"), "value": ("v_proj", "value")}


def input_projection(block: nn.Module, path: str, metric: str) -> tuple[str, int | None] | None:
    """Where the attention at this path of a block leaves its queries, keys or values: see ``Adapter.features``.

    None for an attention that uses the weights of its projection without calling it, or is another library's than the
    block, whose projection may order its outputs otherwise.
    """
    attention = block.get_submodule(path)
    if library(attention) != library(block) or getattr(attention, "q_bias", None) is not None:
        return None
    if isinstance(getattr(attention, TOGETHER, None), nn.Module):
        return f"{path}.{TOGETHER}", list(APART).index(metric)
    found = [name for name in APART[metric] if isinstance(getattr(attention, name, None), nn.Module)]
    return (f"{path}.{found[0]}", None) if found else None


def library(module: nn.Module) -> str:
    return path_of(unpatched(type(module)).forward).partition(".")[0]


def attention_half(
    adapter: type[Adapter], metric: str, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The adapter's attention half [B, L, D], and the features [B, L, D'] of its tokens that the metric names.

    None for the metric "token": the tokens themselves. Features are without gradient.

    Raises:
        ValueError: if attention did not leave them, for all tokens, where the adapter says.
    """
    if metric == "token":
        return adapter.attention_half(block, x, tokens, *args, **kwargs), None
    seen: list[Tensor] = []
    path, third = adapter.features(block, metric) or ("", None)
    y = adapter.attention_half(observed(block, path, seen) if path else block, x, tokens, *args, **kwargs)
    found = seen[0] if len(seen) == 1 else None
    if found is None or found.shape[:2] != x.shape[:2]:
        what = f"left {[list(part.shape) for part in seen]}" if seen else "was not called"
        raise ValueError(
            f"compare={metric!r} takes the output of {type(block).__name__}.{path}, which {what} where ALGM expected "
            f"[{x.shape[0]}, {x.shape[1]}, D], one for each token. Set model.algm.compare = 'token'"
        )
    return y, found if third is None else found.chunk(3, -1)[third]


def observed(module: Any, path: str, seen: list[Tensor]) -> Any:
    """The module, in which the one at this path notes its output. The module itself stays as it is."""
    name, _, rest = path.partition(".")
    if name:
        return altered(module, **{name: observed(getattr(module, name), rest, seen)})

    def observer(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        seen.append(output.detach())
        return output

    return observer
