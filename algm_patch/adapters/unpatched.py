"""Look behind a patch."""

from __future__ import annotations

from torch import nn


def unpatched(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a module had before it was patched."""
    return getattr(cls, "algm_original", cls)
