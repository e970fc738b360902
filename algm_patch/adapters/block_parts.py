"""Read the parts of a block, which different projects name differently, and the arguments of its forward."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def part_of(module: Any, names: tuple[str, ...]) -> Any:
    """Return the part that a module has under the first of these names; None if it has none."""
    return next((part for name in names if (part := getattr(module, name, None)) is not None), None)


def takes_one(block: nn.Module) -> bool:
    """Return whether the forward of a block needs its tokens, and nothing else."""
    given = own_parameters(block)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each for each in given[1:] if each.default is each.empty and each.kind not in optional]
    return bool(given) and given[0].kind is not inspect.Parameter.KEYWORD_ONLY and not needed


def own_parameters(block: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of a block's forward, the first of which are its tokens."""
    return list(inspect.signature(type(block).forward).parameters.values())[1:]


def check_nothing_given(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ValueError if a block is given more than its tokens, which it was not proved with."""
    defaults = {each.name: each.default for each in own_parameters(block)[1:]}
    named = dict(zip(defaults, args, strict=False)) | kwargs
    used = [name for name, value in named.items() if not says_the_same(value, defaults.get(name))]
    if used:
        raise ValueError(
            f"{type(block).__name__} was given {', '.join(used)} beside its tokens, without which ALGM proved what it "
            "computes. Write an Adapter for it and register it: see algm_patch.register. Or call remove_algm first"
        )


def says_the_same(value: Any, default: Any) -> bool:
    """Return whether a value of an argument says what its default does, as None and False do for each other."""
    if value is None or value is False:
        return default is None or default is False
    return value is default or (isinstance(value, int | float | str) and value == default)
