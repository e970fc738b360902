"""Tell which forward pass the input of a block belongs to, over threads, recomputation and several passes at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..core.compiling import number_of_graph
from .forward_pass import ForwardPass

NOT_IN_BACKWARD = -1
# The number of the backward pass under way in this thread, or NOT_IN_BACKWARD.
backward_pass = torch._C._current_graph_task_id
# The attribute of a storage that holds the passes its tokens belong to, by the key of the patched model.
MEMORY = "algm_passes"
NO_MEMORY: dict[object, ForwardPass] = {}


class TracedPasses:
    """Hold the forward pass that a compiler or an export traces, in one graph.

    Attributes:
        last: the last pass that began. A compiled graph writes it anew whenever it runs.
        current: the pass under way; None if it has ended, as far as that is known.
        graph: the number of the graph in which that began.
        taps: blocks (from 0) whose output is read by the method that runs them now; None if no such method is known.
        decoded: the pass whose merged tokens a decoder runs on now, and the one image of it (None: all); None if no
            decoder runs.
        image: the shape of the image that is cut into patches now, where a linear layer makes tokens of them.
    """

    def __init__(self) -> None:
        self.last: ForwardPass | None = None
        self.current: ForwardPass | None = None
        self.graph = 0
        self.taps: frozenset[int] | None = None
        self.decoded: tuple[ForwardPass, int | None] | None = None
        self.image: torch.Size | None = None

    def begin(self, forward_pass: ForwardPass) -> None:
        """Note that a pass is under way."""
        if self.current is not None:
            forward_pass.follow(self.current)
        self.current = self.last = forward_pass
        self.graph = number_of_graph()

    def end(self) -> None:
        """Note that no pass is under way."""
        self.current = None

    @property
    def here(self) -> bool:
        """True if the pass under way began in the graph that is traced now; if not, a graph broke since."""
        return self.current is not None and self.graph == number_of_graph()

    def find(self, x: Tensor, layer: int) -> ForwardPass | None:
        """Return the pass that the input of a block (counted from 0) belongs to; None if it cannot be told."""
        return self.current

    def that_left(self, x: Tensor) -> ForwardPass | None:
        """Return the pass that left these tokens; None if it cannot be told."""
        return self.last


class ThreadPasses:
    """Hold the forward passes of one patched model in one thread.

    Tokens remember their pass: the storage of every block's input and output holds it, for each patched model that
    took or left them. That leads blocks of two passes that run in turns to their own, and gradient checkpointing, which
    runs blocks again in the backward pass when other passes have begun. Tokens that do not know theirs (the first
    block's, or what someone computed between blocks) belong to the pass that this thread was last in. ``last`` began
    outside of backward passes.

    Args:
        traced: the compiled passes of the same model, of all threads.
        key: of this model, in the memory of tokens.

    Attributes:
        idle: how many passes in a row have begun since a block last ran.
        collected: where every pass that begins outside of a backward pass is noted; None: nowhere.
        last, taps, decoded, image: see `TracedPasses`.
    """

    def __init__(self, traced: TracedPasses, key: object) -> None:
        self.traced, self.key = traced, key
        self.last: ForwardPass | None = None
        self.taps: frozenset[int] | None = None
        self.decoded: tuple[ForwardPass, int | None] | None = None
        self.image: torch.Size | None = None
        self.idle = 0
        self.collected: list[ForwardPass] | None = None
        self._under_way: tuple[ForwardPass, int] | None = None
        self._traced_before = traced.last

    @property
    def current(self) -> ForwardPass | None:
        """The pass under way in this backward pass, or outside of one; None if it has ended."""
        now = backward_pass()
        if now == NOT_IN_BACKWARD and self.traced.current is not None:
            return self.traced.current  # begun in a graph, and newer: an eager pass ends it
        return self._under_way[0] if self._under_way is not None and self._under_way[1] == now else None

    @property
    def newest(self) -> ForwardPass | None:
        """The newest pass: of this thread, or of a compiled graph that has run since. None if there was none."""
        return self.last if self.traced.last is self._traced_before else self.traced.last

    def begin(self, forward_pass: ForwardPass) -> None:
        """Note that a pass is under way."""
        before, now = self.current, backward_pass()
        untouched = before is not None and not before.blocks
        if before is not None:
            forward_pass.follow(before)
        self._under_way = forward_pass, now
        forward_pass.key = self.key
        if now == NOT_IN_BACKWARD:
            self.idle = self.idle + 1 if untouched else 0
            self.last, self._traced_before = forward_pass, self.traced.last
            if self.collected is not None:
                self.collected.append(forward_pass)

    def end(self) -> None:
        """Note that no pass is under way."""
        self._under_way = None

    def find(self, x: Tensor, layer: int) -> ForwardPass | None:
        """Return the pass that the input of a block (counted from 0) belongs to; None if it cannot be told.

        A block that has run in it already, and runs again outside of a backward pass, begins a pass of its own from
        there on.
        """
        now = backward_pass()
        try:
            memory = getattr(x.untyped_storage(), MEMORY, NO_MEMORY)
        except NotImplementedError:  # the wrappers of torch.func have no storage
            memory = NO_MEMORY
        known = found = memory.get(self.key)
        if known is None or layer == 0:
            current = self.current
            if known is None or (current is not None and not current.blocks):
                found = current
        if found is None:
            return None
        if now == NOT_IN_BACKWARD and layer in found.blocks:
            if known is None and (layer > 0 or memory):
                return None
            found = found.again_from(layer)
            self.last, self._traced_before = found, self.traced.last
        self._under_way = found, now
        found.key = self.key  # a pass that began in a graph has none
        if found is not known:
            remember(x, found)
        return found

    def that_left(self, x: Tensor) -> ForwardPass | None:
        """Return the pass that left these tokens; None if it cannot be told."""
        return memory_of(x).get(self.key)

    def forget(self) -> None:
        """Know no pass."""
        self.last = self.traced.last = self._traced_before = None


Passes = TracedPasses | ThreadPasses


class PerThread(threading.local):
    """Hold a thread's own passes.

    Args:
        traced, key: of `ThreadPasses`.
    """

    def __init__(self, traced: TracedPasses, key: object) -> None:
        self.passes = ThreadPasses(traced, key)


@contextmanager
def decoding(passes: Passes, forward_pass: ForwardPass, image: int | None = None) -> Iterator[None]:
    """Run the body of a ``with`` statement as a decoder's on the merged tokens of a pass: of all its images, or one."""
    outer, passes.decoded = passes.decoded, (forward_pass, image)
    try:
        yield
    finally:
        passes.decoded = outer


def remember(x: object, forward_pass: ForwardPass) -> None:
    """Note in the storage of tokens which pass they are of; a traced pass is the only one of its graph."""
    if forward_pass.key is None or not isinstance(x, Tensor):
        return
    try:
        storage = x.untyped_storage()
    except NotImplementedError:  # the wrappers of torch.func have no storage
        return
    setattr(storage, MEMORY, {**getattr(storage, MEMORY, {}), forward_pass.key: forward_pass})


def remember_as(x: Tensor, other: Tensor) -> None:
    """Note in the storage of tokens the passes that others belong to."""
    setattr(x.untyped_storage(), MEMORY, memory_of(other))


def memory_of(x: Tensor) -> dict[object, ForwardPass]:
    """Return the passes that took or left these tokens, by the key of the patched model."""
    try:
        return getattr(x.untyped_storage(), MEMORY, NO_MEMORY)
    except NotImplementedError:  # the wrappers of torch.func have no storage
        return NO_MEMORY
