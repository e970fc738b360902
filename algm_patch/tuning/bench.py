"""The measurement of settings on images: how much of a model's answers they keep, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..handle import Algm
from ..patching.identity import identity
from ..settings.record import RECORDS, Record
from ..settings.settings import Compare, Settings
from ..settings.trial import SEARCHED, Rival, Trial
from ..trunks import handle_of
from .budget import Budget
from .cost import Run, gflops_of
from .family import Candidate, Family
from .keeping import kept_and_bound
from .look import Look, similarities_in, with_thresholds
from .prediction import Prediction, proposals_in
from .reference import LEAST_IMAGES, Reference, score_of

# How many proposals there are is not known before a look: one on so few images tells for the next. A look that saves
# something else than was asked for, by more than this part of the GFLOPs, is taken again.
CALIBRATING_IMAGES, SAVED_ERROR = 2, 0.02


@dataclass
class Bench:
    """Measure settings against the unpatched model. ``open_bench`` makes it.

    Attributes:
        model: patched.
        giving: images [1, 3, H, W] each, that give thresholds.
        telling: images that tell what is kept.
        images: how many there are all together.
        keep: by name, at least what is to be kept.
        unit: of costs, "GFLOPs" or "seconds".
        run: returns the model's answer to an image and what it took, within the budget.
        budget: whose progress bar shows the best trial.
        base: settings of which a search changes those in ``SEARCHED``.
        merge_nothing: the same, with which nothing merges.
        reference: what the unpatched model answers.
        prediction: of the GFLOPs that candidates save.
        trials: settings that were measured on the images that tell what is kept.
        rivals: other ways to save, measured on these images.
        sensitivity: divergence for each GFLOP saved, by name of the merge.
        notes: sentences for the record.
    """

    model: nn.Module
    giving: list[Tensor]
    telling: list[Tensor]
    images: int
    keep: dict[str, float]
    unit: str
    run: Callable[[Tensor], Run]
    budget: Budget
    base: Settings
    merge_nothing: Settings
    reference: Reference
    prediction: Prediction
    trials: list[Trial] = field(default_factory=list)
    rivals: list[Rival] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        """The cheapest trial that keeps enough and costs less than the unpatched model; None if none does."""
        unpatched = fmean(self.reference.costs)
        enough = (trial for trial in self.trials if trial.keeps(self.keep) and trial.cost < unpatched)
        return min(enough, key=lambda trial: trial.cost, default=None)

    def look_at(self, family: Family, saved: float) -> Look | None:
        """Look at the candidate of a family that saves about this part of the GFLOPs; None if none does."""
        candidate = self.prediction.candidate(family, saved)
        if candidate is not None and not self.prediction.knows(candidate):
            self.look(candidate, CALIBRATING_IMAGES)
            candidate = self.prediction.candidate(family, saved)
        if candidate is None:
            return None
        look = self.look(candidate)
        again = None if abs(look.saved - saved) <= SAVED_ERROR else self.prediction.candidate(family, saved)
        return look if again is None else self.look(again)

    def look(self, candidate: Candidate, count: int | None = None) -> Look:
        """Run a candidate on the images that give thresholds, or on the first of them.

        Raises:
            OutOfTime: if the budget is spent.
        """
        judge, samples, passes, divergences = self.reference.judge, self.reference.samples, [], []
        with self.handle.using(settings=candidate.settings(self.merge_nothing)):
            for image, sample in zip(self.giving[:count], samples, strict=False):
                found = self.run(image)
                divergences.append(judge.diverge(sample, judge.sample(found.answer)))
                passes.append(found.passes)
            gflops = [self.gflops_of(each) for each in passes]
        together = [past for each in passes for past in each]
        settings = with_thresholds(candidate, self.merge_nothing, similarities_in(together))
        self.prediction.proposals.update(proposals_in(together, candidate))
        saved = 1 - sum(gflops) / sum(self.reference.gflops[:count])
        return Look(candidate, settings, torch.tensor(divergences, dtype=torch.float64), saved)

    def gflops_of(self, passes: Any) -> float:
        """Return the GFLOPs of forward passes; where time is measured, a guess if the blocks are not known."""
        return gflops_of(self.model, passes, guess=self.unit == "seconds")

    def verify(self, settings: Settings) -> Trial:
        """Return what settings keep and cost on the images that tell it, and note it.

        Raises:
            OutOfTime: if the budget is spent.
        """
        with self.handle.using(settings=settings):
            kept, low, cost = self.judged(self.run)
        trial = Trial(**{name: settings[name] for name in SEARCHED}, kept=kept, cost=cost, low=low)
        self.trials.append(trial)
        self._show_best()
        return trial

    def saved(self, trial: Trial) -> float:
        """Return the part of the unpatched cost that a trial saves."""
        return 1 - trial.cost / fmean(self.reference.costs)

    def judged(self, run: Callable[[Tensor], Run]) -> tuple[dict[str, float], dict[str, float], float]:
        """Return by name what is kept of the answers and its bound, and the mean cost, of the model as it is now.

        Args:
            run: from an image to an answer.
        """
        costs, compared, judge, metric = [], [], self.reference.judge, self.reference.metric
        for index, image in enumerate(self.telling):
            found = run(image)
            costs.append(self.cost_of(index, found))
            if metric is None:
                compared.append(judge.compare(self.reference.answers[index], judge.read(found.answer)))
        if metric is None:
            return *kept_and_bound(judge, compared, bounded=self.held_back > 0), fmean(costs)
        return {"metric": score_of(self.model, metric) / self.reference.score}, {}, fmean(costs)

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
            rivals=tuple(self.rivals),
            sensitivity=tuple(self.sensitivity.items()),
            notes=tuple(self.notes),
        )

    def cost_of(self, index: int, found: Run) -> float:
        """Return the cost of an answer to an image that tells what is kept.

        Seconds are those that it would take if the unpatched model, which runs right after it, took as long as it did
        for the reference: other work on the machine slows both.
        """
        if self.unit == "GFLOPs":
            return self.gflops_of(found.passes)
        with self.handle.using(settings=self.merge_nothing):
            return found.seconds * self.reference.costs[index] / self.run(self.telling[index]).seconds

    def _show_best(self) -> None:
        if best := self.best:
            kept = ", ".join(f"{name} {part:.4f}" for name, part in best.kept.items())
            self.budget.show(f"{best.cost:.4g} of {fmean(self.reference.costs):.4g} {self.unit}, keeps {kept}")
