"""What a compiler may trace: all of a patched forward pass in one graph, or of merged blocks only their halves."""

from __future__ import annotations

from collections.abc import Callable
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


def directly(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return function(*args, **kwargs)


# Compilers of older torch leave a TorchFunctionMode out of what they trace, without a word.
TRACES_MODES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)

# For what keeps the state of forward passes: compiled by itself, its Python state would be guarded and recompiled.
outside: Callable[..., Any] = torch.compiler.disable(directly)


def beside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that enters a TorchFunctionMode: outside of a compiler that would leave the mode out."""
    call = directly if TRACES_MODES or not torch.compiler.is_compiling() else outside
    return call(function, *args, **kwargs)
