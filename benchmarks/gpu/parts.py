"""Inside a forward pass: where its time goes, whether it waits for the host, whether it is exact. Used by gpu.py."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from attention_kernels import said
from peers import Method
from torch import Tensor, nn

from algm_patch.adapters.registry import adapter_of
from algm_patch.core.plan import Plan
from algm_patch.functional import TokenMap
from algm_patch.patching import forward_pass as passes

# -- where the time goes

MACHINERY = ("matching", "merging", "unmerging", "other")
PARTS = ("attention half", "MLP half", *MACHINERY, "outside")


class Clock:
    """Adds up the time of functions as the device sees it: by events in CUDA's stream, for which nothing waits."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.spans[what].append((start, self.now()))
            return result

        return run

    def seconds(self) -> dict[str, float]:
        if not self.cuda:
            return {what: sum(end - start for start, end in spans) for what, spans in self.spans.items()}
        torch.cuda.synchronize()
        return {what: sum(start.elapsed_time(end) for start, end in spans) / 1e3 for what, spans in self.spans.items()}


def shares(model: Any, images: Tensor) -> dict[str, float]:
    """Of the time of one forward pass of a patched model: its PARTS.

    "other" is in the blocks, but in none of the parts before; "outside" is not in the blocks.
    """
    clock = Clock(images.is_cuda)
    with stopwatches(clock, model):
        clock.timed("all", model)(images)
    spent = clock.seconds()
    inside = {part: spent.get(part, 0.0) for part in PARTS[:-2]}
    parts = inside | {"other": spent["blocks"] - sum(inside.values()), "outside": spent["all"] - spent["blocks"]}
    return {part: seconds / spent["all"] for part, seconds in parts.items()}


def stopwatches(clock: Clock, model: Any) -> ExitStack:
    """Within, a patched model's blocks, their halves and the stages of merging are timed."""
    block = model.blocks[0]
    adapter: Any = adapter_of(block)
    stack = ExitStack()
    for owner, name, what in (
        (type(block), "forward", "blocks"),
        (adapter, "attention_half", "attention half"),
        (adapter, "mlp_half", "MLP half"),
        (passes, "plan_clap", "matching"),
        (passes, "plan_gbm", "matching"),
        (Plan, "__call__", "merging"),
        (TokenMap, "unmerge", "unmerging"),
    ):
        timed = clock.timed(what, getattr(owner, name))
        stack.enter_context(mock.patch.object(owner, name, staticmethod(timed) if owner is adapter else timed))
    return stack


# -- whether it waits, and runs under all conditions


def synchronisations(run: Callable[[], Any]) -> int:
    """How often a run on a GPU waits for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def conditions(model: nn.Module, images: Tensor) -> Iterator[dict[str, Any]]:
    """Whether the model runs under each, and how far its output is from what it is without."""
    expected = model(images)
    strided = torch.stack([images, images], -1)[..., 0]
    for name, given, context in (
        ("deterministic algorithms", images, deterministic()),
        ("channels-last input", images.contiguous(memory_format=torch.channels_last), nullcontext()),
        ("non-contiguous input", strided, nullcontext()),
    ):
        try:
            with context:
                found: dict[str, Any] = {"distance": distance(model(given), expected)}
        except Exception as error:
            found = {"error": said(error)}
        yield {"condition": name} | found


@contextmanager
def deterministic() -> Iterator[None]:
    with mock.patch.dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8"):  # without it matrix products refuse
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


# -- exactness


def distance(x: Tensor, y: Tensor) -> float:
    """Of two tensors, against the norm of the second."""
    return ((x.double() - y.double()).norm() / y.double().norm()).item()


def errors(model: nn.Module, image: Tensor, how: Method) -> tuple[float, float]:
    """Distances of the outputs, unpatched and patched, to those in float64 on the CPU.

    The float64 model merges what the other has merged: which of two almost equal similarities is larger is no error.
    """
    reference, same = copy.deepcopy(model).cpu().double(), image.cpu().double()
    unpatched = distance(model(image).cpu(), reference(same))
    with how.patch(model), recorded() as plans:
        output = model(image).cpu()
    with how.patch(reference), replayed(plans):
        return unpatched, distance(output, reference(same))


@contextmanager
def recorded() -> Iterator[list[Plan]]:
    """Within, plans are noted in the order in which they are made."""
    plans: list[Plan] = []

    def noted(planned: Callable[..., Plan], *args: Any, **kwargs: Any) -> Plan:
        plans.append(planned(*args, **kwargs))
        return plans[-1]

    with planning(partial(noted, passes.plan_clap), partial(noted, passes.plan_gbm)):
        yield plans


def replayed(plans: Iterable[Plan]) -> ExitStack:
    """Within, these are made instead of new ones, on the CPU and in float64."""
    waiting = map(in_double, plans)

    def plan(*args: Any, **kwargs: Any) -> Plan:
        return next(waiting)

    return planning(plan, plan)


def planning(clap: Callable[..., Plan], gbm: Callable[..., Plan]) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(mock.patch.object(passes, "plan_clap", clap))
    stack.enter_context(mock.patch.object(passes, "plan_gbm", gbm))
    return stack


def in_double(plan: Plan) -> Plan:
    step = TokenMap(plan.step.labels.cpu(), plan.step.sizes.cpu().double())
    return replace(plan, step=step, sizes=plan.sizes.cpu().double())
