"""Blocks of known classes, copied to a path that the library does not know."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from tests.support.models import blocks_of


def as_strangers(model: Any) -> Any:
    """Give every block of a ViT a class that is the same, but for the path of its forward. Return the model."""
    for block in blocks_of(model):
        known: Any = type(block)
        block.__class__ = stranger(known)
    return model


@cache
def stranger(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that only has its own copy of the forward, as a vendored file has."""
    known: Any = cls.forward
    copy = FunctionType(known.__code__, known.__globals__, known.__name__, known.__defaults__, known.__closure__)
    copy.__kwdefaults__ = known.__kwdefaults__
    copy.__dict__.update(known.__dict__)
    copy.__module__, copy.__qualname__ = "vendored.blocks", f"{cls.__name__}.forward"
    return type(cls.__name__, (cls,), {"forward": copy, "__module__": "vendored.blocks"})
