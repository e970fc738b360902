"""Find how far attention may look, by what its modules say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from types import FunctionType
from typing import Any

from torch import nn

# In names of attributes that limit which tokens meet. A proof on fewer tokens than that would not see the limit.
LIMITS = ("window", "local", "neighb", "chunk", "kernel", "dilat", "radius", "band", "span", "block_size", "stride")
# Of more than so many tokens a proof would take long.
MOST = 400


def longest_window(block: nn.Module) -> int:
    """Return the largest number of tokens that attention may be limited to; 0 if nothing says that it is.

    That is, by an attribute of one of the block's modules, or by a number in their code. The window of a table of
    biases is the whole grid: what takes more tokens than that is found out where such tables are cut for a proof.
    """
    found = 0
    for part in block.modules():
        attributes = {} if getattr(part, "relative_position_index", None) is not None else vars(part)
        limits = [tokens_in(value) for name, value in attributes.items() if any(word in name for word in LIMITS)]
        found = max([found, *limits, *(number for number in constants(part) if number <= MOST)])
    return found if found > 4 else 0


def tokens_in(size: Any) -> int:
    """Return how many tokens a window has of this side, or of these sides; 0 if it is no size."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    return prod(sides) if sides and all(type(side) is int for side in sides) else 0


def constants(part: nn.Module) -> Iterator[int]:
    """Yield the whole numbers in the code of a module's methods, if it is not one of torch."""
    for cls in type(part).__mro__:
        if not cls.__module__.startswith("torch."):
            for name, method in vars(cls).items():
                if isinstance(method, FunctionType) and not name.startswith("__"):
                    yield from (each for each in method.__code__.co_consts if type(each) is int)
