"""The engine of a patched model: its settings, its parts, and its forward passes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from ..core.compiling import in_one_graph, traces_python, tracing_context
from ..settings.settings import Settings
from .find_vit import Vit
from .fit import check_fit
from .forward_pass import ForwardPass
from .naming import class_name
from .tracker import Passes, PerThread, TracedPasses

GONE = "the model of this handle is gone: it was deleted, or a part of it was copied alone"


class Runtime:
    """Hold what the patched modules of one model share. They hold it; it holds none of them alive.

    Args:
        trunk: the ViT.
        depth: the number of its blocks.
        settings: that fit it.

    Attributes:
        settings: for the next forward pass.
        model_name: the class of the ViT.
        owners: modules whose attribute ``algm`` shows this runtime.
        threads: the passes that Python runs; ``threads.passes`` are those of this thread.
        traced: the passes that a compiler traces as one graph.
        latest: the newest pass of any thread.
        warned: whether a warning of blocks that were passed by was given.
    """

    def __init__(self, trunk: nn.Module, depth: int, settings: Settings) -> None:
        self.settings, self.depth, self.model_name = settings, depth, class_name(trunk)
        self.owners: WeakSet[nn.Module] = WeakSet()
        self.belong_to(trunk)
        self._know_no_pass()

    def belong_to(self, trunk: nn.Module) -> None:
        """Take a trunk as one's own; in a copied model, the copy."""
        self._trunk: weakref.ref[nn.Module] | None = weakref.ref(trunk)

    def _know_no_pass(self) -> None:
        self.traced = TracedPasses()
        self.latest: ForwardPass | None = None
        self.warned = False
        self.threads = PerThread(self.traced, object())
        self.exports: WeakKeyDictionary[object, TracedPasses] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copy or pickle the settings, not the tokens of a forward pass nor the models around it."""
        return {"settings": self.settings, "model_name": self.model_name, "depth": self.depth}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, owners=WeakSet(), _trunk=None)
        self._know_no_pass()

    # -- the model

    @property
    def linked(self) -> bool:
        """True while the model is there."""
        return self._trunk is not None and self._trunk() is not None

    @property
    def trunk(self) -> Any:
        """The ViT.

        Raises:
            RuntimeError: if it is gone.
        """
        trunk: Any = None if self._trunk is None else self._trunk()
        if trunk is None:
            raise RuntimeError(GONE)
        return trunk

    @property
    def vit(self) -> Vit:
        """The parts of the ViT that are patched.

        Raises:
            RuntimeError: if it is gone, or no longer patched.
        """
        trunk: Any = None if self._trunk is None else self._trunk()
        part = None if trunk is None else trunk.__dict__.get("algm_part")
        if part is None:
            raise RuntimeError(
                GONE if trunk is None else f"this {self.model_name} is no longer patched. Call apply_algm"
            )
        return part.vit

    def change(self, settings: Settings) -> None:
        """Take new settings, or raise and keep the old."""
        check_fit(settings, self.vit, self.model_name)
        self.settings = settings

    # -- its forward passes

    @property
    def passes(self) -> Passes:
        """The forward passes of this thread, or the one that is compiled or exported now."""
        if not torch.compiler.is_compiling() or not self.in_graph():
            return self.threads.passes
        if traces_python() and (context := tracing_context()) is not None:
            return self.exports.setdefault(context, TracedPasses())  # and gone with it
        return self.traced

    def in_graph(self) -> bool:
        """Return whether a compiler traces now, and can have the whole forward pass in one graph."""
        return in_one_graph()

    @property
    def newest(self) -> ForwardPass | None:
        """The newest forward pass: of this thread, or of all if it has run none itself."""
        own = self.threads.passes
        return self.latest if own.last is None else own.newest

    def forget(self) -> None:
        """Know no forward pass."""
        self.threads.passes.forget()
        self.latest = None

    @contextmanager
    def collecting(self) -> Iterator[list[ForwardPass]]:
        """Give a list in which every pass is noted that this thread begins outside of a backward pass."""
        own = self.threads.passes
        outer, own.collected = own.collected, []
        try:
            yield own.collected
        finally:
            own.collected = outer
