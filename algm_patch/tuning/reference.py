"""The answers of the unpatched model, with which others are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..trunks import handle_of
from .cost import Run, gflops_of
from .judges import COSINE, Judge, judge_of, token_shapes

Metric = Callable[[nn.Module], float]
# From so many images on half are held back, and more of more than 16: at most so many give thresholds.
LEAST_IMAGES, THRESHOLD_IMAGES = 4, 8


@dataclass(frozen=True)
class Reference:
    """Hold what the unpatched model answers, and what that costs.

    Attributes:
        judge: compares the answers of others with these.
        costs: of each of the images that tell what is kept.
        answers: to these images, as the judge reads them; empty if a metric decides.
        samples: of the answers to the images that give thresholds, from which divergence is told.
        gflops: of each of these images.
        metric: from the model to a number, which decides instead of the judge; None: the judge does.
        score: of the unpatched model, by the metric.
    """

    judge: Judge
    costs: list[float]
    answers: list[Tensor]
    samples: list[Tensor]
    gflops: list[float]
    metric: Metric | None = None
    score: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is kept."""
        return self.judge.names if self.metric is None else ("metric",)


def split(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the images that give thresholds, and those that tell what is kept.

    These are others: all but 8, or half of them if there are fewer than 16. Of fewer than 4 images all do both.
    """
    if len(images) < LEAST_IMAGES:
        return list(images), list(images)
    first = min(THRESHOLD_IMAGES, len(images) // 2)
    return list(images[:first]), list(images[first:])


def take_reference(
    model: nn.Module,
    giving: Sequence[Tensor],
    telling: Sequence[Tensor],
    run: Callable[[Tensor], Run],
    metric: Metric | None,
    unit: str,
) -> tuple[Run, Reference]:
    """Return the first run of a model whose settings merge nothing, and what it answers to images [1, 3, H, W].

    Args:
        giving: images that give thresholds.
        telling: images that tell what is kept.
        run: runs the model on one of them.
        unit: of the costs, "GFLOPs" or "seconds".

    Raises:
        OutOfTime: if the budget of ``run`` is spent.
        ValueError, TypeError: if the answers cannot be compared, or the metric is not above 0.
    """
    runs, gflops, samples, answers, costs = [], [], [], [], []
    for image in giving:
        found = run(image)
        judge = judge_for(model, found.answer, metric)
        samples.append(judge.sample(found.answer))
        gflops.append(gflops_of(model, found.passes, guess=unit == "seconds"))
        runs.append(replace(found, answer=None))
    for image in telling:
        found = run(image)
        costs.append(found.seconds if unit == "seconds" else gflops_of(model, found.passes, guess=False))
        if metric is None:
            answers.append(judge.read(found.answer))
    if metric is None:
        return runs[0], Reference(judge, costs, answers, samples, gflops)
    score = score_of(model, metric)
    if score <= 0:
        raise ValueError(
            f"metric returned {score} for the unpatched model. Return a number above 0, the higher the better: what is "
            "kept is counted as a part of it"
        )
    return runs[0], Reference(judge, costs, answers, samples, gflops, metric, score)


def judge_for(model: nn.Module, answer: Any, metric: Metric | None) -> Judge:
    """Return the judge of a model's answers. Where a metric decides, any tensor will do: only its divergence is told.

    Raises:
        ValueError, TypeError: if the answer is none that can be compared.
    """
    if metric is not None and isinstance(answer, Tensor) and answer.dim() < 3 and answer.is_floating_point():
        return COSINE
    seen = handle_of(model).last_pass
    return judge_of(answer, token_shapes(seen.grid, seen.num_prefix_tokens, seen.width))


def score_of(model: nn.Module, metric: Metric) -> float:
    """Return the metric of a model, or raise ValueError if it is not finite."""
    score = float(metric(model))
    if not math.isfinite(score):
        raise ValueError(f"metric returned {score}. Return a finite number, the higher the better")
    return score
