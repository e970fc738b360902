"""What settings keep of a model's answers, and what they cost, measured on images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..apply import apply_algm
from ..core.thresholds import Share, reached_by
from ..handle import handle_of
from ..patching.find_vit import class_name
from ..patching.identity import identity
from ..settings.record import RECORDS, SEARCHED, Record, Trial
from ..settings.settings import Compare, Settings
from .calibrate import similarities
from .judges import Judge, judge_of, token_shapes

if TYPE_CHECKING:
    from .search import Candidate

UNITS = {"gflops": "GFLOPs", "time": "seconds"}
# After so many images a candidate is given up if it is this many standard errors away from being of use.
FEW, SPARE = 4, 2.0
# Thresholds of GBM are taken from so many images.
THRESHOLD_IMAGES = 8
# Shares are counted in twentieths.
TWENTIETHS = 20
NOTHING: dict[str, Any] = {
    "clap_layer": None,
    "tau": 1.0,
    "gbm_layers": (),
    "gbm_tau": "adaptive",
    "compare": "token",
}
BAR = "{desc}: {n:.0f} of {total:.0f} s |{bar}|{postfix}"


class OutOfTime(Exception):  # noqa: N818, nothing went wrong
    """The budget is spent."""


@dataclass(frozen=True)
class Outcome:
    """Of measuring a candidate.

    Attributes:
        keeps: enough, as far as was measured.
        costs: of each image so far.
        trial: None if it was given up before the last image.
    """

    keeps: bool
    costs: list[float]
    trial: Trial | None

    @property
    def cost(self) -> float:
        return fmean(self.costs)


class Bench:
    """A model, images, and its unpatched answers to them.

    Args:
        model: patched by :meth:`begin`.
        pictures: [1, 3, H, W] each.
        keep, predict, metric, cost: as for :func:`algm_patch.tune`.
        budget: seconds from now.
    """

    def __init__(
        self,
        model: nn.Module,
        pictures: list[Tensor],
        keep: float,
        predict: Callable[[nn.Module, Tensor], Any],
        metric: Callable[[nn.Module], float] | None,
        cost: str,
        budget: float,
    ) -> None:
        self.model, self.pictures, self.keep = model, pictures, keep
        self.predict, self.metric, self.unit = predict, metric, UNITS[cost]
        self.budget, self.started = budget, time.monotonic()
        self.trials: list[Trial] = []
        self.similarities: dict[Settings, list[Tensor]] = {}
        self.progress = tqdm(total=budget, desc="tune", bar_format=BAR)

    def begin(self, before: Settings | None) -> None:
        """Patch the model so that it merges nothing, and take its answers.

        Args:
            before: settings of a model that is patched already; what is not searched stays, but for fixed counts and a
                calibrated threshold, which the thresholds that are searched replace.
        """
        self.base = replace(before or Settings(), merge_to=None, record=None, calibrated=None)
        self.nothing = replace(self.base, **NOTHING)
        apply_algm(self.model, settings=self.nothing)
        self.handle = handle_of(self.model)
        self.depth = len(self.handle.runtime.vit.blocks)
        blocks = list(zip(self.handle.runtime.vit.blocks, self.handle.runtime.vit.adapters, strict=True))
        by_key = all(adapter.features(block, "key") for block, adapter in blocks)
        self.comparisons: list[Compare] = ["token", "key"] if by_key else ["token"]
        self.unpatched_costs: list[float] = []
        self.references: list[Tensor] = []
        for picture in self.pictures:
            answer, cost = self._answer(picture)
            self.unpatched_costs.append(cost)
            if self.metric is None:
                if not self.references:
                    self.judge = self._judge_of(answer)
                self.references.append(self.judge.read(answer).cpu())
        if self.metric is None:
            self.judged = self.judge.name
        else:
            self.judged, self.unpatched_score = "metric", self._score()
            if self.unpatched_score <= 0:
                raise ValueError(
                    f"metric returned {self.unpatched_score} for the unpatched model. Return a number above 0, the "
                    "higher the better: what is kept is counted as a part of it"
                )

    def _check_ran(self, passes: object) -> None:
        if not passes:
            raise ValueError(f"predict did not run the ViT of {class_name(self.model)} on the images it was given")

    def _judge_of(self, answer: Any) -> Judge:
        self._check_ran(self.handle.runtime.newest)
        past = self.handle.last_pass
        return judge_of(answer, token_shapes(past.grid, past.num_prefix_tokens, past.width))

    def measure(self, candidate: Candidate, best: Outcome | None) -> Outcome:
        """Run a candidate on the images, for as long as it can be of use.

        Args:
            best: what it must beat.

        Raises:
            OutOfTime: if the budget is spent.
        """
        settings = self._settings(candidate)
        self.handle.runtime.change(settings)
        scores = [self._score() / self.unpatched_score] if self.metric else []
        costs: list[float] = []
        for index in range(len(self.pictures)):
            answer, cost = self._in_turns(index)
            costs.append(cost)
            if not self.metric:
                scores.append(self.judge.compare(self.references[index], self.judge.read(answer).cpu()))
            if self._hopeless(scores, costs, best):
                return Outcome(fmean(scores) >= self.keep, costs, None)
        trial = Trial(**{name: settings[name] for name in SEARCHED}, kept=fmean(scores), cost=fmean(costs))
        self.trials.append(trial)
        return Outcome(trial.kept >= self.keep, costs, trial)

    @property
    def best(self) -> Trial | None:
        """The cheapest that keeps enough; of several, the one that keeps most."""
        enough = (trial for trial in self.trials if trial.kept >= self.keep)
        return min(enough, key=lambda trial: (trial.cost, -trial.kept), default=None)

    def record(self, best: Trial) -> Record:
        """How the best was found."""
        return Record(
            *identity(self.handle.runtime),
            images=len(self.pictures),
            judge=self.judged,
            keep=self.keep,
            kept=best.kept,
            unit=self.unit,
            cost=best.cost,
            unpatched_cost=fmean(self.unpatched_costs),
            trials=tuple(self.trials),
            others=tuple(item for item in dict(**self.base).items() if item[0] not in (*SEARCHED, *RECORDS)),
        )

    def _hopeless(self, scores: list[float], costs: list[float], best: Outcome | None) -> bool:
        """Whether a candidate will keep too little, or cost more than the best."""
        count = len(self.pictures)
        if self.metric:
            loses = scores[0] < self.keep and len(costs) >= FEW
        else:
            loses = negative([score - self.keep for score in scores], count)
        return loses or (best is not None and negative([b - c for b, c in zip(best.costs, costs, strict=False)], count))

    def _answer(self, picture: Tensor) -> tuple[Any, float]:
        """Return what the model answers, and what that costs: the seconds, or the GFLOPs of all that its ViT ran."""
        if time.monotonic() - self.started > self.budget:
            raise OutOfTime
        self._show()
        if self.unit == "GFLOPs":
            with self.handle.runtime.collecting() as passes:
                answer = self.predict(self.model, picture)
            self._check_ran(passes)
            return answer, sum(sum(self.handle.cost_of(begun).of_images(begun)) for begun in passes) / 1e9
        synchronize(picture)
        start = time.perf_counter()
        answer = self.predict(self.model, picture)
        synchronize(picture)
        return answer, time.perf_counter() - start

    def _in_turns(self, index: int) -> tuple[Any, float]:
        """The same; a time as it would be if the unpatched model took as long as it did at first."""
        picture = self.pictures[index]
        answer, cost = self._answer(picture)
        if self.unit == "seconds":
            settings = self.handle.settings
            self.handle.runtime.change(self.nothing)
            cost *= self.unpatched_costs[index] / self._answer(picture)[1]
            self.handle.runtime.change(settings)
        return answer, cost

    def _score(self) -> float:
        assert self.metric is not None
        score = float(self.metric(self.model))
        if not math.isfinite(score):
            raise ValueError(f"metric returned {score}. Return a finite number, the higher the better")
        return score

    def _settings(self, candidate: Candidate) -> Settings:
        """The thresholds that the shares of a candidate mean on these images."""
        settings = replace(self.nothing, compare=candidate.compare)
        if candidate.clap:
            settings = replace(settings, clap_layer=candidate.clap_layer, tau=1.0)
            (windows,) = self._similarities(settings, "CLAP", (candidate.clap_layer,))
            settings = replace(settings, tau=threshold(windows, candidate.clap))
        if candidate.gbm_layers:
            share = Share(candidate.gbm, TWENTIETHS)
            settings = replace(settings, gbm_layers=candidate.gbm_layers, gbm_tau=share)
            proposals = self._similarities(settings, "GBM", candidate.gbm_layers)
            settings = replace(settings, gbm_tau=tuple(threshold(layer, candidate.gbm) for layer in proposals))
        return settings

    def _similarities(self, settings: Settings, stage: str, layers: tuple[int, ...]) -> list[Tensor]:
        """[K] of a stage in each of its layers, over some of the images."""
        if settings not in self.similarities:
            self.handle.runtime.change(settings)
            pictures = self.pictures[:THRESHOLD_IMAGES]
            found = [similarities(self.model, stage, layers, partial(self._answer, picture)) for picture in pictures]
            self.similarities[settings] = [torch.cat(layer) for layer in zip(*found, strict=True)]
        return self.similarities[settings]

    def _show(self) -> None:
        elapsed = min(time.monotonic() - self.started, self.budget)
        self.progress.update(elapsed - self.progress.n)
        if best := self.best:
            self.progress.set_postfix_str(
                f"{best.cost:.4g} of {fmean(self.unpatched_costs):.4g} {self.unit}, keeps {best.kept:.4f}",
                refresh=False,
            )


def threshold(similarity: Tensor, twentieths: int) -> float:
    """What so much of [K] similarities reaches: at most 1, where only equal tokens merge."""
    return min(reached_by(similarity[None], twentieths, TWENTIETHS).item(), 1.0) if len(similarity) else 1.0


def negative(margins: Sequence[float], count: int) -> bool:
    """Whether the mean of so many margins, of which these are the first, is sure enough to be below 0."""
    known = len(margins)
    if known < FEW:
        return False
    return fmean(margins) + SPARE * stdev(margins) * math.sqrt(1 / known - 1 / count) < 0


def synchronize(picture: Tensor) -> None:
    if picture.device.type == "cuda":
        torch.cuda.synchronize(picture.device)
