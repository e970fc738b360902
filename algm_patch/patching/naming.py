"""Name modules in messages."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def class_name(module: nn.Module) -> str:
    return type(module).__name__


def full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def as_code(path: str) -> str:
    """Return the path of a submodule as one writes it."""
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".") if part)


def names(paths: Iterable[str]) -> str:
    return ", ".join(map(as_code, paths))
