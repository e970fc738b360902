"""Measure the methods of one stack in turns."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from algm_patch.tuning.judges import correlation

from ..common.timing import in_turns, median_ratio, seconds
from ..evaluation.resolution import resized, smaller
from ..gpu.exactness import in_a_line
from .stack_methods import FIXED, UNPATCHED, Subject

EAGER, WHOLE = "eager", "whole"
COMPILERS = (EAGER, "default", WHOLE)
WEIGHTS = ("plain", "int8", "int8-weights")
RESOLUTION, BACKBONE, BASE = "lower resolution", "smaller backbone", "eager float32"
# The sides of smaller images that are tried, as parts of the whole side.
SCALES = (0.5, 0.57, 0.64, 0.71, 0.78, 0.85, 0.92)
PILOTS = 2  # images that choose among them, one at a time


@dataclass(frozen=True)
class Stack:
    """Hold a combination of what people do already."""

    dtype: str
    compiler: str
    weights: str
    batch: int

    def __str__(self) -> str:
        weights = [] if self.weights == "plain" else [self.weights]
        return ", ".join([self.dtype, self.compiler, *weights, f"batch {self.batch}"])


@dataclass(frozen=True)
class Row:
    """Hold what a method gives in a stack.

    Attributes:
        faster: than the unpatched model there.
        ideal: the same by GFLOPs; None for other networks and images.
        agrees: the correlation of the answers with the unpatched model's there; None if they mean nothing.
        error: why it did not run.
    """

    method: str
    gflops: float = 0.0
    faster: float = 0.0
    ideal: float | None = None
    agrees: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Runner:
    """Hold a network as a stack runs it, and its batches of images."""

    run: Callable[[Tensor], Tensor]
    batches: Sequence[Tensor]

    def __call__(self) -> list[Tensor]:
        """Return the answers to the batches."""
        return [self.run(images) for images in self.batches]


def measure(subject: Subject, stack: Stack, rounds: int, backend: str) -> tuple[float | None, list[Row]]:
    """Return how much faster than in eager float32 the unpatched model is in a stack, and the rows of the methods."""
    torch.compiler.reset()
    runners: dict[str, Runner] = {BASE: Runner(subject.model, subject.images.split(stack.batch))}
    answers: dict[str, list[Tensor]] = {}
    failed: dict[str, Row] = {}
    runners[BASE]()

    def add(name: str, make: Callable[[], Runner]) -> None:
        try:
            runners[name] = make()
            answers[name] = runners[name]()
        except Exception as error:  # the other methods are measured all the same
            runners.pop(name, None)
            failed[name] = Row(name, error=in_a_line(error))

    for name, patch in subject.ways.items():
        varies = name not in (UNPATCHED, FIXED)
        add(name, partial(stacked, stack, patch, subject.model, subject.images, backend, varies))
    if FIXED in runners and UNPATCHED in runners:
        side = as_long_as(subject, replace(stack, compiler=EAGER, weights="plain"))
        images = resized(subject.images, side, side)
        add(RESOLUTION, lambda: stacked(stack, unchanged, subject.model, images, backend, False))
    if subject.smaller is not None:
        other = subject.smaller
        add(BACKBONE, lambda: stacked(stack, unchanged, other, subject.images, backend, False))
    if UNPATCHED not in runners:
        others = [Row(name, error="ran, with nothing to compare with") for name in runners if name != BASE]
        return None, [*others, *failed.values()]
    spent = in_turns({name: partial(seconds, runner) for name, runner in runners.items()}, rounds)
    rows = [row(subject, name, spent, answers) for name in runners if name not in (BASE, UNPATCHED)]
    return median_ratio(spent[BASE], spent[UNPATCHED]), rows + list(failed.values())


def stacked(
    stack: Stack,
    patch: Callable[[nn.Module], nn.Module],
    model: nn.Module,
    images: Tensor,
    backend: str = "",
    counts_vary: bool = False,
) -> Runner:
    """Return a copy of a network, patched, in the dtype, weights and compiler of a stack, and its batches."""
    dtype = getattr(torch, stack.dtype)
    own = patch(quantized(copy.deepcopy(model).to(dtype), stack.weights))
    run: Callable[[Tensor], Tensor] = own
    if stack.compiler == WHOLE:
        run = torch.compile(own, fullgraph=True, dynamic=counts_vary or None, backend=backend)
    elif stack.compiler != EAGER:
        run = torch.compile(own, backend=backend)
    return Runner(run, images.to(dtype).split(stack.batch))


def unchanged(model: nn.Module) -> nn.Module:
    """Return a network as it is."""
    return model


def quantized(model: nn.Module, weights: str) -> nn.Module:
    """Return a network whose linear layers have other weights.

    Raises:
        ModuleNotFoundError: naming what to install.
    """
    if weights == "plain":
        return model
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--weights {weights} needs torchao: pip install torchao") from error
    quantize_(model, Int8WeightOnlyConfig() if weights == "int8-weights" else Int8DynamicActivationInt8WeightConfig())
    return model


def as_long_as(subject: Subject, stack: Stack) -> int:
    """Return the side in pixels of images that take the unpatched model, in a stack, about as long as fixed counts."""
    images, whole = subject.images[: max(stack.batch, PILOTS)], subject.images.shape[-1]
    timers = {
        side: stacked(stack, unchanged, subject.model, resized(images, side, side))
        for side in {smaller(whole, scale, subject.patch) for scale in SCALES}
    }
    timers[whole] = stacked(stack, subject.ways[FIXED], subject.model, images)
    spent = in_turns({side: partial(seconds, runner) for side, runner in timers.items()}, 3)
    least = {side: min(times) for side, times in spent.items()}
    target = least.pop(whole)
    return min(least, key=lambda side: abs(least[side] - target))


def row(
    subject: Subject, name: str, spent: Mapping[str, Sequence[float]], answers: Mapping[str, Sequence[Tensor]]
) -> Row:
    """Return the row of a method."""
    faster, work = median_ratio(spent[UNPATCHED], spent[name]), subject.gflops.get(name)
    ideal = None if work is None else subject.gflops[UNPATCHED] / work
    agrees = None
    if subject.head is not None and name != BACKBONE:
        agrees = agreement(subject.head, answers[UNPATCHED], answers[name])
    return Row(name, work or 0.0, faster, ideal, agrees)


def agreement(head: nn.Module, reference: Sequence[Tensor], features: Sequence[Tensor]) -> float:
    """Return the correlation of the saliency with that of the reference's features, averaged over images."""
    maps, others = (head(torch.cat(list(each)).float()).sigmoid() for each in (reference, features))
    pairs = zip(maps, resized(others, *maps.shape[-2:]), strict=True)
    return statistics.fmean(correlation(one, other) for one, other in pairs)
