"""Recognize a patched model."""

from __future__ import annotations

from .._version import __version__
from ..settings.record import weight_sample
from .runtime import Runtime


def identity(runtime: Runtime) -> tuple[str, int, tuple[float, ...], str]:
    """Return the class, the depth, a few weights and our version: the first fields of a ``Record``."""
    model = runtime.model_name.removeprefix("FSDP")  # which fully_shard writes before the name of a class
    return model, runtime.depth, weight_sample(runtime.vit.projection), __version__
