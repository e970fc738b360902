"""Make a method look like the one whose place it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def looks_like(original: Any) -> Callable[[Any], Any]:
    """Decorator: the function has the name, text and signature of another, but does not lead to it.

    accelerate follows ``__wrapped__`` to undo mixed precision, down to what would be the unpatched method.
    """

    def alike(function: Any) -> Any:
        function = wraps(original)(function)
        del function.__wrapped__
        function.__signature__ = inspect.signature(original)
        return function

    return alike
