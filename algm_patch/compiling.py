"""What a compiler may trace: all of a patched forward pass in one graph, or of merged blocks only their halves."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from .settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


def in_one_graph(settings: Settings) -> bool:
    """Whether a compiler traces now that can have merges in its graph.

    With fixed counts any can; else one that may read numbers from tensors: ``fullgraph=True`` or an export.
    """
    return torch.compiler.is_compiling() and (settings.tokens is not None or reads_numbers())


def traces_python() -> bool:
    """Whether an export runs the model itself, with tensors that hold nothing."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def reads_numbers() -> bool:
    context = torch._guards.TracingContext.try_get()
    shapes = getattr(getattr(context, "fake_mode", None), "shape_env", None)
    return shapes is not None and shapes.allow_scalar_outputs


def machinery(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of methods that keep the state of forward passes, of objects that have ``settings``.

    Compiled only as part of a whole forward pass: by themselves their Python state would be guarded and recompiled.
    """
    disabled: Callable[..., R] = torch.compiler.disable(function)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> R:
        chosen = function if in_one_graph(args[0].settings) else disabled
        return chosen(*args, **kwargs)

    return run
