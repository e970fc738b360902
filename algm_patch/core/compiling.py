"""Choose what a compiler traces: a patched forward pass as one graph, or the halves of merged blocks alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Whether torch.compile can have a patched forward pass in one graph: it ran in 2.9, and 2.5 knows no context managers.
ONE_GRAPH = RELEASE >= (2, 9)
# Compilers of older torch leave a TorchFunctionMode out of what they trace, without a word.
TRACES_MODES = RELEASE >= (2, 6)
P = ParamSpec("P")
R = TypeVar("R")


def in_one_graph(fixed_counts: bool) -> bool:
    """Return whether a compiler traces now that can have merges in its graph.

    With fixed counts any can; else one that may read numbers from tensors: ``fullgraph=True`` or an export.
    """
    able = ONE_GRAPH or traces_python()
    return torch.compiler.is_compiling() and able and (fixed_counts or reads_numbers())


def traces_python() -> bool:
    """Return whether an export runs the model itself, with tensors that hold nothing."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


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


def _reads_numbers() -> bool:
    context = torch._guards.TracingContext.try_get()
    shapes = getattr(getattr(context, "fake_mode", None), "shape_env", None)
    return shapes is not None and shapes.allow_scalar_outputs


# Under another name than the function's own, in whose place torch 2.5 puts the result.
reads_numbers = torch.compiler.assume_constant_result(_reads_numbers)


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


# Why a whole graph breaks where these are met.
TOO_OLD = "torch 2.9 is the first known to compile a model with ALGM's merges as one graph. Compile without fullgraph"
NO_NUMBERS = (
    "ALGM merges by thresholds, so a graph of the whole model must read numbers from tensors, which this torch does "
    "for fullgraph=True if torch._dynamo.config.capture_scalar_outputs is True. Set it; or merge fixed counts, "
    "apply_algm(model, merge_to=0.6); or compile without fullgraph"
)
WHY_BROKEN = NO_NUMBERS if ONE_GRAPH else TOO_OLD
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
