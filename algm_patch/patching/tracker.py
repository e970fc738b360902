"""Which forward pass a block's input belongs to, over threads, recomputation and several passes at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from .forward_pass import ForwardPass

NOT_IN_BACKWARD = -1


def backward_pass() -> int:
    """The number of the backward pass under way in this thread, or NOT_IN_BACKWARD."""
    return torch._C._current_graph_task_id()


class Tracing:
    """The forward pass that a compiler traces, in one graph.

    Attributes:
        last: the last pass that began. A compiled graph writes it anew whenever it runs.
        taps: blocks (from 0) whose output is read by the method that runs them now; None if no such method is known.
        decoded: the pass whose merged tokens a decoder runs on now, and which image's (None: all); None if none does.
    """

    def __init__(self) -> None:
        self.last: ForwardPass | None = None
        self.taps: frozenset[int] | None = None
        self.decoded: tuple[ForwardPass, int | None] | None = None
        self._current: Any = None

    @property
    def current(self) -> ForwardPass | None:
        """The pass under way; None if it has ended, as far as that is known."""
        return self._current

    def begin(self, forward_pass: ForwardPass) -> None:
        self._current = self.last = forward_pass

    def end(self) -> None:
        """No pass is under way."""
        self._current = None

    @contextmanager
    def reading(self, taps: frozenset[int]) -> Iterator[None]:
        """Within, the blocks are run by a method that reads the output of ``taps`` and of no others."""
        outer, self.taps = self.taps, taps
        try:
            yield
        finally:
            self.taps = outer
            self.end()

    @contextmanager
    def decoding(self, forward_pass: ForwardPass, image: int | None = None) -> Iterator[None]:
        """Within, a decoder runs on the merged tokens of this pass: of all its images, or of one."""
        outer, self.decoded = self.decoded, (forward_pass, image)
        try:
            yield
        finally:
            self.decoded = outer

    def of(self, x: Tensor, layer: int) -> ForwardPass | None:
        """The forward pass that the input of a block (counted from 0) belongs to; None if it cannot be told."""
        return self.current

    def known(self, x: Tensor) -> ForwardPass | None:
        """The forward pass that left these tokens; None if it cannot be told."""
        return self.last

    def remember(self, x: object, forward_pass: ForwardPass) -> None:
        """These tokens are of this pass."""


class Tracker(threading.local, Tracing):
    """The forward passes of one patched model; each thread has its own.

    Tokens remember their pass: the storage of every block's input and output holds it, for each patched model that
    took or left them. That leads blocks of two passes that run in turns to their own, and gradient checkpointing, which
    runs blocks again in the backward pass when other passes have begun. Tokens that do not know theirs (the first
    block's, or what someone computed between blocks) belong to the pass that this thread was last in. ``last`` began
    outside of backward passes.

    Args:
        tracing: the compiled passes of the same model, of all threads.
        key: of this model, in what tokens remember.

    Attributes:
        idle: how many passes in a row have begun since a block last ran.
    """

    def __init__(self, tracing: Tracing, key: object) -> None:
        Tracing.__init__(self)
        self.tracing, self.key = tracing, key
        self.idle = 0
        self._compiled_before = tracing.last
        self.begun: list[ForwardPass] | None = None

    @contextmanager
    def collecting(self) -> Iterator[list[ForwardPass]]:
        """Note every pass that this thread begins outside of a backward pass, in the list that is given."""
        outer, self.begun = self.begun, []
        try:
            yield self.begun
        finally:
            self.begun = outer

    @property
    def current(self) -> ForwardPass | None:
        now = backward_pass()
        if now == NOT_IN_BACKWARD and self.tracing.current is not None:
            return self.tracing.current  # begun in a graph, and newer: an eager pass ends it
        return self._current[0] if self._current is not None and self._current[1] == now else None

    @property
    def newest(self) -> ForwardPass | None:
        """The newest pass: of this thread, or of a compiled graph that has run since. None if there was none."""
        return self.last if self.tracing.last is self._compiled_before else self.tracing.last

    def forget(self) -> None:
        """Know no pass."""
        self.tracing.last = None
        self._make_newest(None)

    def _make_newest(self, forward_pass: ForwardPass | None) -> None:
        self.last, self._compiled_before = forward_pass, self.tracing.last

    def begin(self, forward_pass: ForwardPass) -> None:
        before = self.current
        forward_pass.doubtful = before is not None and not before.steps and before.grid != forward_pass.grid
        self._current = forward_pass, backward_pass()
        if backward_pass() == NOT_IN_BACKWARD:
            self.idle = self.idle + 1 if before is not None and not before.steps else 0
            self._make_newest(forward_pass)
            if self.begun is not None:
                self.begun.append(forward_pass)

    def of(self, x: Tensor, layer: int) -> ForwardPass | None:
        """See :meth:`Tracing.of`.

        A block that has run in it already, and runs again outside of a backward pass, begins a pass of its own from
        there on.
        """
        now = backward_pass()
        found = current = self.current
        known = self.known(x)
        if known is not None and not (layer == 0 and current is not None and not current.steps):
            found = known
        if found is None:
            return None
        if now == NOT_IN_BACKWARD and layer in found.steps:
            if known is None and (layer > 0 or is_remembered(x)):
                return None
            found = found.again_from(layer)
            self._make_newest(found)
        self._current = found, now
        self.remember(x, found)
        return found

    def known(self, x: Tensor) -> ForwardPass | None:
        return remembered(x).get(self.key)

    def remember(self, x: object, forward_pass: ForwardPass) -> None:
        if isinstance(x, Tensor):
            with suppress(NotImplementedError):
                storage: Any = x.untyped_storage()
                storage._algm_passes = {**remembered(x), self.key: forward_pass}


def remembered(x: Tensor) -> dict[object, ForwardPass]:
    """Return the passes that took or left these tokens, by the key of the patched model."""
    try:
        return getattr(x.untyped_storage(), "_algm_passes", {})
    except NotImplementedError:  # the wrappers of torch.func have no storage
        return {}


def is_remembered(x: Tensor) -> bool:
    """Return whether a block of any patched model took or left these tokens."""
    return bool(remembered(x))
