"""Tell blocks apart that may compute differently, whatever their weights."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .instance_forward import BRINGING, brings_weights
from .unpatched import unpatched

# Attributes of every module that are compared in their own way, or say nothing of what it computes.
SKIPPED = {"_parameters", "_buffers", "_modules", "training", "algm_part", "_compiled_call_impl"}
PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)
FUNCTIONS = (FunctionType, BuiltinFunctionType)
# Rates of dropout and stochastic depth, of which each block may have another: it is the same block.
RATES = {"p", "drop_prob", "sample_drop_ratio"}
LARGE = 1_000_000
DEPTH = 8


def proof_key(block: nn.Module) -> Hashable:
    """Return what blocks of one class have in common if what is proved of one is proved of all.

    That is, of each part: its class with what that holds, which may be replaced, plain attributes and functions, the
    shapes of its parameters, and the values of its buffers. What cannot be compared is equal to itself alone.
    """
    shapes = tuple((name, x.shape, x.dtype.is_floating_point) for name, x in block.named_parameters())
    return tuple(state_of(block).items()), shapes


def state_of(block: nn.Module, depth: int = DEPTH) -> dict[str, Hashable]:
    """Return all that a module holds beside its parameters, in a form that is equal if it is the same."""
    state: dict[str, Hashable] = {}
    for path, part in block.named_modules(remove_duplicate=False):
        cls: Any = type(part)
        state[path] = class_state(unpatched(cls))
        skipped = SKIPPED | BRINGING if brings_weights(part) else SKIPPED
        for name, value in (*vars(part).items(), *part._buffers.items()):
            if name not in skipped and not is_hooks(name):
                state[f"{path}.{name}".lstrip(".")] = frozen(value, name, depth)
    return state


def class_state(cls: type[nn.Module]) -> Hashable:
    """Return a class, and the methods and plain attributes that it has now, but for torch's."""
    classes = [each for each in cls.__mro__ if not each.__module__.startswith("torch.")]
    held = [value for each in classes for value in vars(each).values() if isinstance(value, (*PLAIN, FunctionType))]
    return cls, *((type(value), value) for value in held)


def is_hooks(name: str) -> bool:
    """Return whether an attribute of a module holds its hooks."""
    return name.endswith("_hooks") or "_hooks_" in name


class Itself:
    """Be equal to another of these only if both stand for one object, which may go."""

    def __init__(self, value: Any) -> None:
        self.value = weakref.ref(value)

    def __eq__(self, other: object) -> bool:
        value = self.value()
        return self is other or (isinstance(other, Itself) and value is not None and value is other.value())

    def __hash__(self) -> int:
        return hash(Itself)


def frozen(value: Any, name: str, depth: int) -> Hashable:
    """Return something that is equal for equal values of an attribute of this name."""
    if name in RATES and isinstance(value, float):
        return value > 0, value > 0.1  # above which DINOv2 leaves out images
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, Tensor) and not value.is_meta and value.numel() <= LARGE:
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return value.shape, value.dtype, numbers
    if isinstance(value, FUNCTIONS):
        return value
    if depth > 0 and (items := contents(value, depth)) is not None:
        return type(value), tuple(frozen(each, each_name, depth - 1) for each_name, each in items)
    try:
        return Itself(value)
    except TypeError:  # it takes no weak reference
        return object()


def contents(value: Any, depth: int) -> list[tuple[str, Any]] | None:
    """Return what an object holds, with names; None if that is not known."""
    if isinstance(value, nn.Module):
        return [(path, state) for path, state in state_of(value, depth - 1).items()]
    if isinstance(value, MethodType):
        return [("", value.__func__), ("", Itself(value.__self__))]
    if isinstance(value, partial):
        return [("", value.func), ("", value.args), ("", value.keywords)]
    if isinstance(value, set | frozenset):
        return [("", each) for each in sorted(value, key=repr)]
    if isinstance(value, list | tuple):
        return [("", each) for each in value]
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in (("", key), (str(key), each))]
    return [("", vars(value))] if hasattr(value, "__dict__") and not isinstance(value, Tensor) else None
