"""Take calls as version 0.1 did, in another place or order, with a DeprecationWarning."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import nn

from .warning import warn_user

P = ParamSpec("P")
R = TypeVar("R")


def warn_of(old: str, new: str) -> None:
    """Warn that something is now written another way."""
    warn_user(f"algm_patch: {old} is now {new}; the old way goes with the next release", DeprecationWarning)


def model_first(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: a function that takes the model first accepts it in second place too."""
    name = getattr(function, "__name__", "")

    @wraps(function)
    def in_order(*args: Any, **kwargs: Any) -> R:
        if args and "model" in kwargs:
            warn_of(f"{name}(..., model=...)", f"{name}(model, ...)")
            args = (kwargs.pop("model"), *args)
        elif len(args) > 1 and isinstance(args[1], nn.Module) and not isinstance(args[0], nn.Module):
            warn_of(f"{name}(..., model, ...)", f"{name}(model, ..., ...)")
            args = (args[1], args[0], *args[2:])
        return function(*args, **kwargs)

    return in_order
