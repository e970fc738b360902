"""The measurement of candidates on images: how much of a model's answers they keep, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from ..apply import apply_algm
from ..handle import Algm
from ..patching.identity import identity
from ..settings.record import RECORDS, Record
from ..settings.settings import Compare, Settings
from ..settings.trial import SEARCHED, Trial
from ..trunks import handle_of
from .budget import Budget
from .candidates import Candidate
from .cost import Predict, answer_and_cost
from .keeping import Keep, kept_and_bound, wanted
from .reference import LEAST_IMAGES, Forward, Metric, Reference, score_of, split, take_reference
from .shares import Thresholds

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
        telling: images [1, 3, H, W] each, that tell what is kept.
        images: how many there are all together.
        keep: by name, at least what is to be kept.
        unit: of costs, "GFLOPs" or "seconds".
        forward: returns the model's answer to an image and its cost, within the budget.
        budget: whose progress bar shows the best trial.
        base: settings of which a search changes those in ``SEARCHED``.
        thresholds: turns candidates into settings.
        reference: what the unpatched model answers.
        trials: what was measured on all images so far.
    """

    model: nn.Module
    telling: list[Tensor]
    images: int
    keep: dict[str, float]
    unit: str
    forward: Forward
    budget: Budget
    base: Settings
    thresholds: Thresholds
    reference: Reference
    trials: list[Trial] = field(default_factory=list)

    @property
    def held_back(self) -> int:
        """The number of images that tell what is kept, and gave no threshold."""
        return len(self.telling) if self.images >= LEAST_IMAGES else 0

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
        return min(
            (trial for trial in self.trials if trial.keeps(self.keep)), key=lambda trial: trial.cost, default=None
        )

    def measure(self, candidate: Candidate, best: Outcome | None) -> Outcome:
        """Turn a candidate into settings and verify them; ``best`` is what it must beat."""
        trial = self.verify(self.thresholds.settings_of(candidate))
        return Outcome(trial.keeps(self.keep), [trial.cost], trial)

    def verify(self, settings: Settings) -> Trial:
        """Return what settings keep and cost on the images that tell it, and note it.

        Raises:
            OutOfTime: if the budget is spent.
        """
        costs, compared, judge = [], [], self.reference.judge
        with self.handle.using(settings=settings):
            for index, image in enumerate(self.telling):
                answer, cost = self._answer(index, image)
                costs.append(cost)
                if self.reference.metric is None:
                    compared.append(judge.compare(self.reference.answers[index], judge.read(answer)))
            if self.reference.metric is None:
                kept, low = kept_and_bound(judge, compared, bounded=self.held_back > 0)
            else:
                kept, low = {"metric": score_of(self.model, self.reference.metric) / self.reference.score}, {}
        trial = Trial(**{name: settings[name] for name in SEARCHED}, kept=kept, cost=fmean(costs), low=low)
        self.trials.append(trial)
        self._show_best()
        return trial

    def record(self, best: Trial) -> Record:
        """Return the record of a search that found this trial best."""
        return Record(
            *identity(self.handle.runtime),
            images=self.images,
            held_back=self.held_back,
            keep=self.keep,
            kept=best.kept,
            low=best.low,
            unit=self.unit,
            cost=best.cost,
            unpatched_cost=fmean(self.reference.costs),
            trials=tuple(self.trials),
            others=tuple(item for item in dict(**self.base).items() if item[0] not in (*SEARCHED, *RECORDS)),
        )

    def _answer(self, index: int, image: Tensor) -> tuple[Any, float]:
        """Return the model's answer to an image that tells what is kept, and its cost.

        Seconds are those that it would take if the unpatched model, which runs right after it, took as long as it did
        for the reference: other work on the machine slows both.
        """
        answer, cost = self.forward(image)
        if self.unit == "seconds":
            with self.handle.using(settings=self.thresholds.merge_nothing):
                _, unpatched_now = self.forward(image)
            cost *= self.reference.costs[index] / unpatched_now
        return answer, cost

    def _show_best(self) -> None:
        if best := self.best:
            kept = ", ".join(f"{name} {part:.4f}" for name, part in best.kept.items())
            self.budget.show(f"{best.cost:.4g} of {fmean(self.reference.costs):.4g} {self.unit}, keeps {kept}")


def open_bench(
    model: nn.Module,
    images: list[Tensor],
    keep: Keep,
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

    giving, telling = split(images)
    thresholds = Thresholds(model, giving, forward, merge_nothing)
    reference = take_reference(model, giving, telling, forward, metric)
    parts = wanted(keep, reference.names)
    return Bench(model, telling, len(images), parts, unit, forward, budget, base, thresholds, reference)
