"""Warn a user at the line of their own code."""

from __future__ import annotations

import inspect
import warnings

# The modules between a user's line and a warning of ours: this package, Python's context managers and dataclasses.
OURS = (__package__, "contextlib", "dataclasses")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line that called into the library."""
    level, frame = 1, inspect.currentframe()  # of this function, which is level 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
