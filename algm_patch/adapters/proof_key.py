"""Tell blocks apart that may compute differently, whatever their weights."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .instance_forward import BRINGING, brings_weights

# Attributes of every module that say nothing of what it computes, or are compared in their own way.
SKIPPED = {"_parameters", "_buffers", "_modules", "training", "algm_part", "_compiled_call_impl"}
PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)
# Rates of dropout and stochastic depth: a block of each rate is no other block.
RATES = {"p", "drop_prob", "sample_drop_ratio", "drop_path_rate"}
DEPTH = 8


def proof_key(block: nn.Module) -> Hashable:
    """Return what blocks of one class have in common if what is proved of one is proved of all.

    That is, of each part: its class, plain attributes and functions, the shapes of its parameters and the values of its
    buffers. What cannot be compared makes a key that no other block has.
    """
    return tuple((name, type(part), *described(part)) for name, part in block.named_modules(remove_duplicate=False))


def described(part: nn.Module, depth: int = DEPTH) -> tuple[Hashable, ...]:
    skipped = SKIPPED | BRINGING if brings_weights(part) else SKIPPED
    attributes = {name: value for name, value in vars(part).items() if name not in skipped and not is_hooks(name)}
    return (
        tuple((name, frozen(value, name, depth)) for name, value in sorted(attributes.items())),
        tuple((name, x if x is None else x.shape) for name, x in part._parameters.items()),
        tuple((name, frozen(x, name, depth)) for name, x in part._buffers.items()),
    )


def is_hooks(name: str) -> bool:
    """Return whether an attribute of a module holds its hooks."""
    return name.endswith("_hooks") or "_hooks_" in name


def frozen(value: Any, name: str, depth: int) -> Hashable:
    """Return something that is equal for equal values; if that cannot be, something that nothing is equal to."""
    if name in RATES and isinstance(value, float):
        return value > 0, value > 0.1  # where DINOv2 leaves out images
    if isinstance(value, Tensor):
        return numbers(value)
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return value
    if depth == 0:
        return object()
    if isinstance(value, nn.Module):
        return type(value), *described(value, depth - 1)
    if isinstance(value, MethodType):
        return value.__func__
    if isinstance(value, partial):
        return frozen([value.func, value.args, value.keywords], name, depth - 1)
    if isinstance(value, list | tuple | set | frozenset):
        items = value if isinstance(value, list | tuple) else sorted(value, key=repr)
        return type(value), tuple(frozen(each, name, depth - 1) for each in items)
    if isinstance(value, dict):
        return type(value), tuple(
            (frozen(key, "", depth - 1), frozen(each, str(key), depth - 1)) for key, each in value.items()
        )
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value), frozen(vars(value), name, depth - 1)
    return object()


def numbers(x: Tensor) -> Hashable:
    """Return the shape and values of a tensor."""
    if x.is_meta or x.numel() > 1_000_000:
        return object()
    raw = x.detach().cpu().contiguous().flatten().view(torch.uint8)
    return x.shape, x.dtype, raw.numpy().tobytes()
