"""Patch a model for a while, or a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from algm_patch import Algm, Settings, apply_algm, remove_algm
from algm_patch.trunks import handle_of

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def patched(model: nn.Module, settings: Settings | None = None, **changes: Any) -> Iterator[Algm]:
    """Patch the model, yield its handle, and remove the patch at the end.

    Args:
        settings: the settings to start from; by default, the defaults.
        changes: other values of some settings.
    """
    apply_algm(model, settings=settings, **changes)
    try:
        yield handle_of(model)
    finally:
        remove_algm(model)


def twin(model: Model) -> Model:
    """Return another module with the same weights, at the same place in memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
