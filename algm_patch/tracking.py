"""Which forward pass a block's input belongs to, over threads, recomputation and several passes at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .passes import ForwardPass

NOT_IN_BACKWARD = -1


def backward_pass() -> int:
    """The number of the backward pass under way in this thread, or NOT_IN_BACKWARD."""
    return torch._C._current_graph_task_id()


class Tracker(threading.local):
    """The forward passes of one patched model; each thread has its own.

    Attributes:
        last: the last pass that this thread began (outside of backward passes).
        taps: blocks (from 0) whose output is read by the method that runs them now; None if no such method is known.
    """

    def __init__(self) -> None:
        self.last: ForwardPass | None = None
        self.taps: frozenset[int] | None = None
        self._current: tuple[ForwardPass, int] | None = None

    def begin(self, forward_pass: ForwardPass) -> None:
        self._current = forward_pass, backward_pass()
        if backward_pass() == NOT_IN_BACKWARD:
            self.last = forward_pass

    @contextmanager
    def reading(self, taps: frozenset[int]) -> Iterator[None]:
        """Within, the blocks are run by a method that reads the output of ``taps`` and of no others."""
        self.taps, self._current = taps, None
        try:
            yield
        finally:
            self.taps = None

    def of(self, x: Tensor) -> ForwardPass | None:
        """The forward pass of a block's input; None if it cannot be told.

        Gradient checkpointing runs blocks again in the backward pass, when other forward passes may have begun. The
        input of a checkpointed segment is kept for that, and its storage remembers the pass. The blocks after the
        first of a segment follow it.
        """
        now = backward_pass()
        found: ForwardPass | None = None
        if now != NOT_IN_BACKWARD:
            found = getattr(x.untyped_storage(), "_algm_pass", None)
        if found is None and self._current is not None and self._current[1] == now:
            found = self._current[0]
        if found is not None:
            self._current = found, now
            if x.requires_grad or torch.is_grad_enabled():
                x.untyped_storage()._algm_pass = found  # type: ignore[attr-defined]
        return found
