"""Check that a block is given one grid of patches for each sequence, or say that it was not."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor


def not_whole(layer: int, x: Tensor, prefix: int, grid: tuple[int, int], expected: int, merged: bool) -> ValueError:
    """Return the error of a block (counted from 0) that was given fewer tokens than the grid has, or no [B, L, D].

    Args:
        expected: so many tokens.
        merged: whether these are merged.
    """
    return ValueError(
        f"block {layer + 1} was given {list(x.shape)} where ALGM expected [B, {expected}, D]: {prefix} prefix tokens, "
        f"then {grid[0]}x{grid[1]} patches{', merged' if merged else ''}. It needs the whole grid in every block, with "
        "nothing left out on the way (patch dropout, masking) and no image cut up (windows)"
        f"{'' if x.dim() == 3 else '. If blocks return a tuple, their Adapter must say so in pack'}"
    )


def several_grids(layer: int, x: Tensor, prefix: int, grid: tuple[int, int], grids: int) -> ValueError:
    """Return the error of a block (counted from 0) whose sequences are made of several grids each."""
    return ValueError(
        f"block {layer + 1} was given {list(x.shape)}: {x.shape[0]} sequences of {x.shape[1]} tokens, made of {grids} "
        f"grids of {grid[0]}x{grid[1]} patches and {prefix} prefix tokens. ALGM merges in sequences of one grid each, "
        "and does not know where one of several views, frames or crops ends. Run each as an image of its own; or set "
        "clap_layer and gbm_layers to blocks that are given one grid a sequence; or call remove_algm first"
    )


def alone(block: Any, *inputs: Any) -> list[Any]:
    """Return inputs of a block without the lists around them.

    Raises:
        ValueError: if a list holds several: crops, which have no grid in common.
    """
    for given in inputs:
        if isinstance(given, list) and len(given) != 1:
            raise ValueError(
                f"{type(block).__name__} was given a list of {len(given)} tensors, crops or frames, where ALGM expects "
                "one batch of tokens with one grid. Run them one after the other, or call remove_algm first"
            )
    return [given[0] if isinstance(given, list) else given for given in inputs]


def refuse_tuple(block: Any, given: tuple[Any, ...]) -> NoReturn:
    """Raise ValueError: a block was given several tensors in the place of its tokens."""
    raise ValueError(
        f"{type(block).__name__} was given a tuple of {len(given)} as its tokens, such as queries of a smaller grid "
        "and the keys that they look at, where ALGM expects one batch of tokens with one grid. Call remove_algm first"
    )
