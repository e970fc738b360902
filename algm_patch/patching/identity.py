"""Recognize a patched model."""

from __future__ import annotations

from .._version import __version__
from ..settings.record import weight_sample
from ..warning import warn_user
from .runtime import Runtime


def identity(runtime: Runtime) -> tuple[str, int, tuple[float, ...], str]:
    """Return the class, the depth, a few weights and our version: the first fields of a ``Record``."""
    model = runtime.model_name.removeprefix("FSDP")  # which fully_shard writes before the name of a class
    return model, runtime.depth, weight_sample(runtime.vit.projection), __version__


def warn_of_other_model(runtime: Runtime) -> None:
    """Warn if settings were measured on another model than this, or by another version."""
    record = runtime.settings.record
    if record is not None and (difference := record.mismatch(*identity(runtime))):
        warn_user(f"these settings were measured {difference}. Measure anew: tune(model, images)")
