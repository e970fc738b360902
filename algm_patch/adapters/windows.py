"""Find how far attention may look, by what its modules say of themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import chain
from math import prod
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

# In names of what limits which tokens meet. A proof on fewer tokens than that would not see the limit.
LIMITS = ("window", "local", "neighb", "chunk", "kernel", "dilat", "radius", "band", "span", "block_size", "stride")
# Of more than so many tokens a proof would take long.
MOST = 400


def longest_window(block: nn.Module) -> int:
    """Return the largest number of tokens that attention may be limited to; 0 if nothing says that it is.

    That is, by an attribute of one of the block's modules, half a mask that it holds, or a number in their code. The
    window of a table of biases is the whole grid: what takes more tokens than that is found out where such tables are
    cut for a proof.
    """
    found = 0
    for part in block.modules():
        attributes = {} if getattr(part, "relative_position_index", None) is not None else vars(part)
        limits = [tokens_of_window(value) for name, value in attributes.items() if says_limit(name)]
        masks = [
            buffer.shape[-1] // 2 - 4 for buffer in part._buffers.values() if buffer is not None and is_mask(buffer)
        ]
        found = max([found, *limits, *masks, *(number for number in numbers_in_code(part) if number <= MOST)])
    return found if found > 4 else 0


def is_mask(buffer: Tensor) -> bool:
    """Return whether a buffer may say which tokens meet: for pairs of tokens, where minus infinity or False is."""
    if buffer.dim() < 2 or buffer.shape[-1] != buffer.shape[-2] or buffer.is_meta:
        return False
    return buffer.dtype == torch.bool or (buffer.is_floating_point() and bool((buffer < -1000).any()))


def says_limit(name: str) -> bool:
    """Return whether what has this name may limit which tokens meet."""
    return any(word in name.lower() for word in LIMITS)


def tokens_of_window(size: Any) -> int:
    """Return how many tokens a window has of this side, or of these sides; 0 if it is no size."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    return prod(sides) if sides and all(type(side) is int for side in sides) else 0


def numbers_in_code(part: nn.Module) -> Iterator[int]:
    """Yield the whole numbers in the code of a module's methods, if it is not one of torch, and of what they call."""
    for cls in type(part).__mro__:
        if not cls.__module__.startswith("torch."):
            for name, method in vars(cls).items():
                if isinstance(method, FunctionType) and not name.startswith("__"):
                    yield from numbers_in(method)
                    yield from chain.from_iterable(map(numbers_in, helpers_of(method)))


def numbers_in(function: FunctionType) -> Iterator[int]:
    """Yield the whole numbers in the code of a function, and limits by name: of the module, or of defaults."""
    code, defaults = function.__code__, inspect.signature(function).parameters.items()
    named = [function.__globals__.get(name) for name in code.co_names if says_limit(name)]
    by_default = [parameter.default for name, parameter in defaults if says_limit(name)]
    yield from (each for each in (*code.co_consts, *named, *by_default) if type(each) is int)


def helpers_of(function: FunctionType) -> Iterator[FunctionType]:
    """Yield the functions of the same package that a function calls by name."""
    for name in function.__code__.co_names:
        helper = function.__globals__.get(name)
        if isinstance(helper, FunctionType) and package_of(helper) == package_of(function):
            yield helper


def package_of(function: FunctionType) -> str:
    """Return the name of the package of a function."""
    return str(function.__module__).partition(".")[0]
