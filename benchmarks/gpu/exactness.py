"""Measure how exact a patched model is, how often it waits for the host, and that it runs under all conditions."""

from __future__ import annotations

import copy
import os
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from algm_patch.core.plan import Plan, plan_clap, plan_gbm
from algm_patch.functional import TokenMap
from algm_patch.patching import forward_pass

from ..evaluation.methods import Method


def count_synchronisations(run: Callable[[], Any]) -> int:
    """Return how often a run on a GPU waits for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def under_conditions(model: nn.Module, images: Tensor) -> Iterator[dict[str, Any]]:
    """Yield for each condition the distance of the model's output to that without it, or the error."""
    expected = model(images)
    strided = torch.stack([images, images], -1)[..., 0]
    for name, given, context in (
        ("deterministic algorithms", images, deterministic()),
        ("channels-last input", images.contiguous(memory_format=torch.channels_last), nullcontext()),
        ("non-contiguous input", strided, nullcontext()),
    ):
        try:
            with context:
                result: dict[str, Any] = {"distance": relative_distance(model(given), expected)}
        except Exception as error:
            result = {"error": in_a_line(error)}
        yield {"condition": name} | result


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch use deterministic algorithms only."""
    with mock.patch.dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8"):  # matrix products need it
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def in_a_line(error: BaseException) -> str:
    """Return the class and the message of an error, in a line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")


def relative_distance(x: Tensor, y: Tensor) -> float:
    """Return the norm of the difference of two tensors, divided by the norm of the second."""
    return ((x.double() - y.double()).norm() / y.double().norm()).item()


def float64_errors(model: nn.Module, image: Tensor, method: Method) -> tuple[float, float]:
    """Return the distances of the outputs, unpatched and patched, to those in float64 on the CPU.

    The float64 model merges what the other has merged: which of two almost equal similarities is larger is no error.
    """
    reference, same = copy.deepcopy(model).cpu().double(), image.cpu().double()
    unpatched = relative_distance(model(image).cpu(), reference(same))
    with method.patch(model), recorded_plans() as plans:
        output = model(image).cpu()
    with method.patch(reference), replayed_plans(plans):
        return unpatched, relative_distance(output, reference(same))


@contextmanager
def recorded_plans() -> Iterator[list[Plan]]:
    """Yield a list to which plans are added as they are made."""
    plans: list[Plan] = []

    def recorded(planned: Callable[..., Plan], *args: Any, **kwargs: Any) -> Plan:
        plans.append(planned(*args, **kwargs))
        return plans[-1]

    with planning_by(partial(recorded, plan_clap), partial(recorded, plan_gbm)):
        yield plans


def replayed_plans(plans: Iterable[Plan]) -> ExitStack:
    """Return a context in which these plans are made, on the CPU and in float64, instead of new ones."""
    waiting = map(in_double, plans)

    def next_plan(*args: Any, **kwargs: Any) -> Plan:
        return next(waiting)

    return planning_by(next_plan, next_plan)


def planning_by(clap: Callable[..., Plan], gbm: Callable[..., Plan]) -> ExitStack:
    """Return a context in which these functions plan the merges."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(forward_pass, "plan_clap", clap))
    stack.enter_context(mock.patch.object(forward_pass, "plan_gbm", gbm))
    return stack


def in_double(plan: Plan) -> Plan:
    """Return a plan for tokens in float64 on the CPU."""
    step = TokenMap(plan.step.labels.cpu(), plan.step.sizes.cpu().double())
    return replace(plan, step=step, sizes=plan.sizes.cpu().double())
