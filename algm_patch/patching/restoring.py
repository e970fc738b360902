"""Restore patched modules that are copied or unpickled: their copied runtimes find them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def restoring_owner(original: Any) -> Callable[[Any, Any], None]:
    """Return the ``__setstate__`` of a module around trunks, of which a copied runtime does not know."""

    def restore(self: Any, state: Any) -> None:
        original.__setstate__(self, state)
        if "algm" in self.__dict__:
            for runtime in self.algm_part.runtimes:
                runtime.owners.add(self)

    return restore


def restoring_trunk(original: Any) -> Callable[[Any, Any], None]:
    """Return the ``__setstate__`` of a trunk."""
    restore_owner = restoring_owner(original)

    def restore(self: Any, state: Any) -> None:
        restore_owner(self, state)
        if not self.algm_part.runtime.linked:
            self.algm_part.runtime.belong_to(self)

    return restore
