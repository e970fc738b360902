"""A property that is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached(Generic[T]):  # noqa: N801, a decorator
    """Decorator: ``functools.cached_property`` without the lock of Python 3.11, which no compiler traces."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> T:
        name = self.function.__name__
        if name not in instance.__dict__:
            instance.__dict__[name] = self.function(instance)
        return instance.__dict__[name]
