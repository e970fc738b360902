"""The answers of the unpatched model, with which others are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from ..trunks import handle_of
from .judges import Judge, judge_of, token_shapes

Metric = Callable[[nn.Module], float]
# From an image [1, 3, H, W] to the model's answer and its cost.
Forward = Callable[[Tensor], tuple[Any, float]]


@dataclass(frozen=True)
class Reference:
    """Hold what the unpatched model answers, and what that costs. Either a judge decides or a metric.

    Attributes:
        costs: of each image.
        judge: compares the answers of others with these; None if a metric decides.
        answers: of each image, as the judge reads them; empty if a metric decides.
        metric: from the model to a number; None if a judge decides.
        score: of the unpatched model, by the metric.
    """

    costs: list[float]
    judge: Judge | None = None
    answers: list[Tensor] = field(default_factory=list)
    metric: Metric | None = None
    score: float = 1.0

    @property
    def cost(self) -> float:
        """The mean over the images."""
        return fmean(self.costs)

    @property
    def judged_by(self) -> str:
        """The name of what decides, as in ``Record.judge``."""
        return "metric" if self.judge is None else self.judge.name

    def kept_by_metric(self, model: nn.Module) -> list[float]:
        """Return the part of the unpatched score that a model reaches, in a list; an empty one if a judge decides."""
        return [] if self.metric is None else [score_of(model, self.metric) / self.score]

    def kept_by_judge(self, index: int, answer: Any) -> list[float]:
        """Return how much an answer to one image keeps, in a list; an empty one if a metric decides."""
        return [] if self.judge is None else [self.judge.compare(self.answers[index], self.judge.read(answer).cpu())]


def take_reference(model: nn.Module, images: list[Tensor], forward: Forward, metric: Metric | None) -> Reference:
    """Return what a model, whose settings merge nothing, answers to images [1, 3, H, W].

    Raises:
        OutOfTime: if the budget of ``forward`` is spent.
        ValueError, TypeError: if the answers cannot be compared, or the metric is not above 0.
    """
    costs: list[float] = []
    answers: list[Tensor] = []
    judge = None
    for image in images:
        answer, cost = forward(image)
        costs.append(cost)
        if metric is None:
            if judge is None:
                seen = handle_of(model).last_pass
                judge = judge_of(answer, token_shapes(seen.grid, seen.num_prefix_tokens, seen.width))
            answers.append(judge.read(answer).cpu())
    if metric is None:
        return Reference(costs, judge, answers)
    score = score_of(model, metric)
    if score <= 0:
        raise ValueError(
            f"metric returned {score} for the unpatched model. Return a number above 0, the higher the better: what is "
            "kept is counted as a part of it"
        )
    return Reference(costs, metric=metric, score=score)


def score_of(model: nn.Module, metric: Metric) -> float:
    """Return the metric of a model, or raise ValueError if it is not finite."""
    score = float(metric(model))
    if not math.isfinite(score):
        raise ValueError(f"metric returned {score}. Return a finite number, the higher the better")
    return score
