"""What a compiler may trace: all of a patched forward pass in one graph, or of merged blocks only their halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

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


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Run what was compiled as if it were not: no graph lets a caller look inside, or stop half way."""
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    compiled: list[tuple[dict[str, Any], str, Any]] = []  # before torch 2.6: attributes, and what they hide
    for part in model.modules():
        own = vars(part)
        if own.get("_compiled_call_impl") is not None:
            compiled.append((own, "_compiled_call_impl", None))
        if (original := part._modules.get("_orig_mod")) is not None:
            compiled.append((own, "forward", original.__call__))
    before = [own[name] for own, name, _ in compiled]
    try:
        for own, name, call in compiled:
            own[name] = call
        yield
    finally:
        for (own, name, _), call in zip(compiled, before, strict=True):
            own[name] = call


def directly(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return function(*args, **kwargs)


# For what keeps the state of forward passes: compiled by itself, its Python state would be guarded and recompiled.
outside: Callable[..., Any] = torch.compiler.disable(directly)
