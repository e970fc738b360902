"""Patch a model for a while, or a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from algm_patch import apply_algm, remove_algm

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def patched(model: nn.Module, **settings: Any) -> Iterator[None]:
    """Patch the model with these arguments of ``apply_algm``, and remove the patch at the end."""
    apply_algm(model, **settings)
    try:
        yield
    finally:
        remove_algm(model)


def twin(model: Model) -> Model:
    """Return another module with the same weights, at the same place in memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)  # type: ignore[arg-type]
