"""Choose what a compiler traces: a patched forward pass as one graph, or the halves of merged blocks alone."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Whether torch.compile can have a patched forward pass in one graph: it ran in 2.9, and 2.5 knows no context managers.
ONE_GRAPH = RELEASE >= (2, 9)
# Compilers of older torch leave a TorchFunctionMode out of what they trace, without a word.
TRACES_MODES = RELEASE >= (2, 6)
P = ParamSpec("P")
R = TypeVar("R")


def in_one_graph() -> bool:
    """Return whether a compiler traces now that can have merges in its graph."""
    return torch.compiler.is_compiling() and (ONE_GRAPH or traces_python())


def traces_python() -> bool:
    """Return whether an export runs the model itself, with tensors that hold nothing."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def exports() -> bool:
    """Return whether an export traces now; before torch 2.7, whether one runs the model itself.

    It reads the flag itself: torch 2.9 takes ``torch.compiler.is_exporting()`` for true in all that it compiles.
    """
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    return traces_python() if flag is None else flag


def tracing_context() -> object | None:
    """Return what lives as long as an export that runs the model itself; None if torch has nothing of the kind."""
    return torch._guards.TracingContext.try_get()


def refuse_jit_trace() -> None:
    """Raise RuntimeError: ``torch.jit.trace`` keeps the merges of the one image that it is given."""
    raise RuntimeError(
        "torch.jit.trace (which torch.onnx.export(dynamo=False), coremltools and others call) would keep the "
        "merges of the one image that it traces with. Use torch.export.export(model, (images,)) or "
        "torch.onnx.export(model, (images,), dynamo=True); or call remove_algm(model) first"
    )


def refuse_fx_trace() -> None:
    """Raise RuntimeError: ``torch.fx`` copies what blocks do with any tokens, where merges depend on these."""
    raise RuntimeError(
        "torch.fx (which torchvision's create_feature_extractor calls) would copy the blocks' operations without the "
        "merges. Take features by forward hooks on the blocks, or by the model's own method (forward_intermediates, "
        "output_hidden_states); or call remove_algm(model) first"
    )


def refuse_jit_script(module: object) -> None:
    """Raise RuntimeError: ``torch.jit.script`` reads the source of the forward, and would leave the merges out."""
    raise RuntimeError(
        f"torch.jit.script compiles the source of the unpatched {type(module).__name__}, which merges nothing. Use "
        "torch.export.export(model, (images,)) or torch.compile(model); or call remove_algm(model) first"
    )


def in_numbers(grid: tuple[int, int]) -> tuple[int, int]:
    """Return a grid as numbers, where a compiler would have the size of an image a variable.

    Raises:
        ValueError: if an export is to have it a variable.
    """
    if traces_python() and any(isinstance(side, torch.SymInt) for side in grid):
        raise ValueError(
            "dynamic_shapes lets the image's height or width vary, and merge_to counts the tokens of one size. Let "
            "only the batch vary, {0: torch.export.Dim('batch')}, and export one file for each size; or "
            "export thresholds, apply_algm(model, merge_to=None)"
        )
    return operator.index(grid[0]), operator.index(grid[1])


def read_numbers(x: Tensor) -> list[int]:
    """Return the numbers of an integer tensor [n] that a compiler or an export traces.

    Dynamo leaves its graph for them unless it has ``fullgraph=True`` or is told, as here, to have them in it.
    """
    if traces_python() or not ONE_GRAPH:
        return x.tolist()
    has_numbers()
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        return x.tolist()


def _has_numbers() -> None:
    """Let the graph under way have numbers, as torch lets one with ``fullgraph=True``."""
    context: Any = tracing_context()
    shapes = context.fake_mode.shape_env
    shapes.settings = replace(shapes.settings, allow_scalar_outputs=True)


def _number_of_graph() -> int:
    """Return a number that no other graph has; 0 outside of graphs."""
    context = tracing_context()
    return 0 if context is None else vars(context).setdefault("algm_graph", next(GRAPHS))


GRAPHS = itertools.count(1)
# Under other names than the functions' own, in whose place torch 2.5 puts the results.
has_numbers = torch.compiler.assume_constant_result(_has_numbers)
number_of_graph = torch.compiler.assume_constant_result(_number_of_graph)


def let_vary(x: Tensor, dim: int) -> Tensor:
    """Return a tensor such that what is compiled for it, not compiled yet, is so for any size of a dimension."""
    torch._dynamo.maybe_mark_dynamic(x, dim)
    return x


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
        if (original := dict(part.named_children()).get("_orig_mod")) is not None:
            compiled.append((own, "forward", original.__call__))
    before = [own[name] for own, name, _ in compiled]
    try:
        for own, name, call in compiled:
            own[name] = call
        yield
    finally:
        for (own, name, _), call in zip(compiled, before, strict=True):
            own[name] = call


# Why a graph breaks at a block.
WHY_BROKEN = (
    "ALGM's merges are in a graph that holds the model from its patch embedding on, and this one does not. Compile the "
    "whole model; or find what broke the graph before this block; or compile without fullgraph"
)
if not ONE_GRAPH:
    WHY_BROKEN = (
        "torch 2.9 is the first known to compile a model with ALGM's merges as one graph. Compile without fullgraph"
    )
REASON = {"reason": WHY_BROKEN} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Return a copy of a function that no compiler looks into."""
    return torch.compiler.disable(own_code(function), **REASON)


def by_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Return a copy of a function whose frame no compiler traces; it compiles what the function calls."""
    return torch.compiler.disable(own_code(function), recursive=False, **REASON)


def own_code(function: Callable[P, R]) -> Callable[P, R]:
    """Return a copy of a function, which a compiler can treat in another way than the function itself."""
    code = function.__code__.replace()  # torch marks the code itself, and the function is traced elsewhere
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__qualname__ = function.__qualname__ if REASON else f"{function.__name__} ({WHY_BROKEN})"  # what torch prints
    return copy


def beside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that enters a TorchFunctionMode, which a compiler of older torch would leave out."""
    if TRACES_MODES or not torch.compiler.is_compiling():
        return function(*args, **kwargs)
    return outside(function, *args, **kwargs)


def directly(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function."""
    return function(*args, **kwargs)


outside: Callable[..., Any] = untraced(directly)
