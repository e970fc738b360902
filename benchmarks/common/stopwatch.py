"""Measure which parts of a patched model's forward pass take its time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from algm_patch.core.plan import Plan
from algm_patch.functional import TokenMap
from algm_patch.patching import forward_pass
from algm_patch.patching.find_vit import find_vit

# Merging adds these to the blocks; "other" is in the blocks, but in none of the parts before it.
MACHINERY = ("matching", "merging", "unmerging", "other")
# "outside" is outside of the blocks.
PARTS = ("attention half", "MLP half", *MACHINERY, "outside")


class Clock:
    """Add up the time of functions as the device sees it: on CUDA by events in its stream, for which nothing waits."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        """Return the time, or an event that has it later."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed under a name."""

        def timed_function(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.spans[name].append((start, self.now()))
            return result

        return timed_function

    def seconds(self) -> dict[str, float]:
        """Return the seconds by name."""
        if not self.cuda:
            return {name: sum(end - start for start, end in spans) for name, spans in self.spans.items()}
        torch.cuda.synchronize()
        return {name: sum(start.elapsed_time(end) for start, end in spans) / 1e3 for name, spans in self.spans.items()}


def time_shares(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the share of each of ``PARTS`` in the time of one forward pass of a patched model."""
    clock = Clock(images.is_cuda)
    with parts_timed(clock, model):
        clock.timed("all", model)(images)
    spent = clock.seconds()
    inside = {part: spent.get(part, 0.0) for part in PARTS[:-2]}
    parts = inside | {"other": spent["blocks"] - sum(inside.values()), "outside": spent["all"] - spent["blocks"]}
    return {part: seconds / spent["all"] for part, seconds in parts.items()}


def parts_timed(clock: Clock, model: nn.Module) -> ExitStack:
    """Return a context in which a patched model's blocks, their halves and the stages of merging are timed."""
    _, vit = find_vit(model)
    block, adapter = vit.blocks[0], vit.adapters[0]
    stack = ExitStack()
    for owner, attribute, name in (
        (type(block), "forward", "blocks"),
        (adapter, "attention_half", "attention half"),
        (adapter, "mlp_half", "MLP half"),
        (forward_pass, "plan_clap", "matching"),
        (forward_pass, "plan_gbm", "matching"),
        (Plan, "__call__", "merging"),
        (TokenMap, "unmerge", "unmerging"),
    ):
        timed = clock.timed(name, getattr(owner, attribute))
        stack.enter_context(mock.patch.object(owner, attribute, staticmethod(timed) if owner is adapter else timed))
    return stack
