"""Find where attention leaves the queries, keys or values that it makes of its tokens."""

from __future__ import annotations

from torch import nn

from .registry import forward_path

# Names of an attention's input projections: one for all, whose thirds are in the order of the others; or one for each.
TOGETHER = "qkv"
APART = {"query": ("q_proj", "query"), "key": ("k_proj", "key"), "value": ("v_proj", "value")}


def input_projection(block: nn.Module, path: str, compare: str) -> tuple[str, int | None] | None:
    """Return where the attention at this path of a block leaves its queries, keys or values: see ``Adapter.features``.

    None for an attention that uses the weights of its projection without calling it, or that is another library's than
    the block, whose projection may order its outputs otherwise.
    """
    attention = block.get_submodule(path)
    if library(attention) != library(block) or getattr(attention, "q_bias", None) is not None:
        return None
    if isinstance(getattr(attention, TOGETHER, None), nn.Module):
        return f"{path}.{TOGETHER}", list(APART).index(compare)
    found = [name for name in APART[compare] if isinstance(getattr(attention, name, None), nn.Module)]
    return (f"{path}.{found[0]}", None) if found else None


def library(module: nn.Module) -> str:
    """Return the name of the package that a module's forward comes from."""
    return forward_path(module).partition(".")[0]
