"""The measurement of candidates on images: how much of a model's answers they keep, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from torch import Tensor, nn

from ..apply import apply_algm
from ..handle import Algm
from ..patching.identity import identity
from ..settings.record import RECORDS, SEARCHED, Record, Trial
from ..settings.settings import Compare, Settings
from ..trunks import handle_of
from .budget import Budget
from .candidates import Candidate
from .cost import Predict, answer_and_cost
from .reference import Forward, Metric, Reference, take_reference
from .shares import Thresholds

# A candidate is given up after LEAST_IMAGES at the earliest, if it is STANDARD_ERRORS away from being of use.
STANDARD_ERRORS, LEAST_IMAGES = 2.0, 4
# The number of images from which thresholds are taken.
THRESHOLD_IMAGES = 8
# Changes of settings with which nothing merges.
MERGE_NOTHING: dict[str, Any] = {
    "clap_layer": None,
    "tau": 1.0,
    "gbm_layers": (),
    "gbm_tau": "adaptive",
    "compare": "token",
    "merge_to": None,
}


@dataclass(frozen=True)
class Outcome:
    """Tell how a candidate did.

    Attributes:
        keeps: True if it keeps enough, as far as it was measured.
        costs: of each image that it was measured on.
        trial: what it keeps and costs over all images; None if it was given up before the last one.
    """

    keeps: bool
    costs: list[float]
    trial: Trial | None

    @property
    def cost(self) -> float:
        return fmean(self.costs)


@dataclass
class Bench:
    """Measure candidates against the unpatched model. ``open_bench`` makes it.

    Attributes:
        model: patched.
        images: [1, 3, H, W] each.
        keep: as for ``algm_patch.tune``.
        unit: of costs, "GFLOPs" or "seconds".
        forward: returns the model's answer to an image and its cost, within the budget.
        budget: whose progress bar shows the best trial.
        base: settings of which a search changes those in ``SEARCHED``.
        thresholds: turns candidates into settings.
        reference: what the unpatched model answers.
        trials: what was measured on all images so far.
    """

    model: nn.Module
    images: list[Tensor]
    keep: float
    unit: str
    forward: Forward
    budget: Budget
    base: Settings
    thresholds: Thresholds
    reference: Reference
    trials: list[Trial] = field(default_factory=list)

    @property
    def handle(self) -> Algm:
        return handle_of(self.model)

    @property
    def depth(self) -> int:
        """The number of blocks of the ViT."""
        return len(self.handle.runtime.vit.blocks)

    @property
    def comparisons(self) -> list[Compare]:
        """The vectors that the ViT can compare: tokens, and keys if every block has one module that makes them."""
        vit = self.handle.runtime.vit
        has_keys = all(adapter.features(block, "key") for block, adapter in zip(vit.blocks, vit.adapters, strict=True))
        return ["token", "key"] if has_keys else ["token"]

    @property
    def best(self) -> Trial | None:
        """The cheapest trial that keeps enough; of equally cheap ones the one that keeps most. None if none does."""
        enough = (trial for trial in self.trials if trial.kept >= self.keep)
        return min(enough, key=lambda trial: (trial.cost, -trial.kept), default=None)

    def measure(self, candidate: Candidate, best: Outcome | None) -> Outcome:
        """Run a candidate on the images, for as long as it can be of use.

        Args:
            best: what it must beat. None: nothing yet.

        Raises:
            OutOfTime: if the budget is spent.
        """
        settings = self.thresholds.settings_of(candidate)
        costs: list[float] = []
        with self.handle.using(settings=settings):
            scores = self.reference.kept_by_metric(self.model)
            for index in range(len(self.images)):
                answer, cost = self._answer(index)
                costs.append(cost)
                scores += self.reference.kept_by_judge(index, answer)
                if self._is_hopeless(scores, costs, best):
                    return Outcome(fmean(scores) >= self.keep, costs, None)
        trial = Trial(**{name: settings[name] for name in SEARCHED}, kept=fmean(scores), cost=fmean(costs))
        self.trials.append(trial)
        self._show_best()
        return Outcome(trial.kept >= self.keep, costs, trial)

    def record(self, best: Trial) -> Record:
        """Return the record of a search that found this trial best."""
        return Record(
            *identity(self.handle.runtime),
            images=len(self.images),
            judge=self.reference.judged_by,
            keep=self.keep,
            kept=best.kept,
            unit=self.unit,
            cost=best.cost,
            unpatched_cost=self.reference.cost,
            trials=tuple(self.trials),
            others=tuple(item for item in dict(**self.base).items() if item[0] not in (*SEARCHED, *RECORDS)),
        )

    def _answer(self, index: int) -> tuple[Any, float]:
        """Return the model's answer to an image and its cost.

        Seconds are those that it would take if the unpatched model, which runs right after it, took as long as it did
        for the reference: other work on the machine slows both.
        """
        answer, cost = self.forward(self.images[index])
        if self.unit == "seconds":
            with self.handle.using(settings=self.thresholds.merge_nothing):
                _, unpatched_now = self.forward(self.images[index])
            cost *= self.reference.costs[index] / unpatched_now
        return answer, cost

    def _is_hopeless(self, scores: list[float], costs: list[float], best: Outcome | None) -> bool:
        """Return whether a candidate will keep too little, or cost more than the best."""
        count = len(self.images)
        if self.reference.metric is not None:
            loses = scores[0] < self.keep and len(costs) >= LEAST_IMAGES
        else:
            loses = is_surely_negative([score - self.keep for score in scores], count)
        if loses or best is None:
            return loses
        return is_surely_negative([before - now for before, now in zip(best.costs, costs, strict=False)], count)

    def _show_best(self) -> None:
        if best := self.best:
            self.budget.show(f"{best.cost:.4g} of {self.reference.cost:.4g} {self.unit}, keeps {best.kept:.4f}")


def open_bench(
    model: nn.Module,
    images: list[Tensor],
    keep: float,
    predict: Predict,
    metric: Metric | None,
    unit: str,
    budget: Budget,
    before: Settings | None,
) -> Bench:
    """Patch a model so that it merges nothing, take its answers, and return what measures candidates against them.

    Args:
        keep, predict, metric: as for ``algm_patch.tune``.
        unit: of costs, "GFLOPs" or "seconds".
        before: the settings of a model that was patched already. What is not searched stays, except for fixed counts
            and a calibrated threshold: the thresholds that are searched replace them.

    Raises:
        OutOfTime: if the budget is spent.
        ValueError, TypeError: if the model cannot be patched, or its answers cannot be compared.
    """
    base = replace(before or Settings(), merge_to=None, record=None, calibrated=None)
    merge_nothing = replace(base, **MERGE_NOTHING)
    apply_algm(model, settings=merge_nothing)

    def forward(image: Tensor) -> tuple[Any, float]:
        budget.check()
        return answer_and_cost(model, predict, image, unit)

    thresholds = Thresholds(model, images[:THRESHOLD_IMAGES], forward, merge_nothing)
    reference = take_reference(model, images, forward, metric)
    return Bench(model, images, keep, unit, forward, budget, base, thresholds, reference)


def is_surely_negative(margins: Sequence[float], count: int) -> bool:
    """Return whether the mean of ``count`` margins is below 0 by two standard errors, from the first of them."""
    measured = len(margins)
    if measured < LEAST_IMAGES:
        return False
    return fmean(margins) + STANDARD_ERRORS * stdev(margins) * math.sqrt(1 / measured - 1 / count) < 0
