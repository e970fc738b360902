"""Name modules in messages."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def class_name(module: nn.Module) -> str:
    return type(module).__name__


def full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def check_model(model: object) -> None:
    """Raise TypeError if what was given as a model is something else, such as its name."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model comes first: a torch.nn.Module, such as timm.create_model(name) returns; got {model!r:.80}"
        )


def as_code(path: str) -> str:
    """Return the path of a submodule as one writes it."""
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".") if part)


def names(paths: Iterable[str]) -> str:
    return ", ".join(map(as_code, paths))
