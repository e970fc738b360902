"""Records of how settings were found, and on what model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn

# Weights by which a checkpoint is known again, and how far they move, relative to the largest, by rounding to bfloat16.
SAMPLE = 8
ROUNDING = 2**-7
# The settings that tune searches.
SEARCHED = ("clap_layer", "tau", "gbm_layers", "gbm_tau", "compare")
# Those that are no settings, but records of how settings came about.
RECORDS = ("record", "calibrated")


@dataclass(frozen=True)
class Trial:
    """Hold settings that were tried, with the part of the answer that they keep, and their cost."""

    clap_layer: int | None
    tau: float
    gbm_layers: tuple[int, ...]
    gbm_tau: float | tuple[float, ...] | str
    compare: str
    kept: float
    cost: float

    @property
    def settings(self) -> dict[str, Any]:
        """The settings alone, by name."""
        return {name: getattr(self, name) for name in SEARCHED}

    def __str__(self) -> str:
        clap, gbm = "no CLAP", "no GBM"
        if self.clap_layer is not None:
            clap = f"CLAP {self.clap_layer}, tau {self.tau:.4f}"
        if self.gbm_layers:  # without, its threshold is the name of a rule
            taus = self.gbm_tau if isinstance(self.gbm_tau, tuple) else (self.gbm_tau,)
            numbers = (tau if isinstance(tau, str) else f"{tau:.4g}" for tau in taus)
            gbm = f"GBM {' '.join(map(str, self.gbm_layers))}, tau {' '.join(numbers)}"
        return f"{clap}; {gbm}{f'; by {self.compare}' if self.compare != 'token' else ''}"


def front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the Pareto front, cheapest first: trials that no trial of the same or less cost beats."""
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.cost, -trial.kept)):
        if not best or trial.kept > best[-1].kept:
            best.append(trial)
    return best


@dataclass(frozen=True)
class Calibrated:
    """Hold the threshold of a data set, as `algm_patch.calibrate` found it. It is saved and loaded with settings.

    Attributes:
        value: the threshold.
        tau: the rule that gave it: "auto" or "paper".
        clap_layer, window, compare, place: the settings that it was measured with.

    Raises:
        ValueError: if the value is no finite number, as in a file that was edited.
    """

    value: float
    tau: str
    clap_layer: int
    window: tuple[int, int]
    compare: str
    place: str

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, Real) or not math.isfinite(self.value):
            raise ValueError(f"calibrated holds a threshold, which is a finite number; got {self.value!r}")

    def holds_for(self, settings: Any) -> bool:
        """Return whether ``settings`` are those that it was measured with, and name its rule."""
        return (self.tau, self.clap_layer, self.window, self.compare, self.place) == (
            settings.tau,
            settings.clap_layer,
            settings.window,
            settings.compare,
            settings.place,
        )


@dataclass(frozen=True)
class Record:
    """Hold how `algm_patch.tune` found settings, and on what. It is saved and loaded with them, and prints as a table.

    Attributes:
        model: class of the ViT.
        blocks: how many it has.
        weights: a few of its patch projection's.
        version: of algm_patch.
        images: how many.
        judge: what ``kept`` is: "agreement" of pixels, "correlation", "cosine" of tokens, or "metric".
        keep: at least what was asked for; the unpatched model keeps 1.
        kept: by these settings.
        unit: of the costs, "GFLOPs" or "seconds", an image.
        cost: of these settings.
        unpatched_cost: of the model without them.
        trials: all settings that were measured to the end.
        others: names and values of the settings that were not searched.
    """

    model: str
    blocks: int
    weights: tuple[float, ...]
    version: str
    images: int
    judge: str
    keep: float
    kept: float
    unit: str
    cost: float
    unpatched_cost: float
    trials: tuple[Trial, ...]
    others: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        others = self.others if isinstance(self.others, tuple) else (None,)
        if not all(isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in others):
            raise ValueError(f"others holds names and values of settings; got {self.others!r:.80}")

    def holds_for(self, settings: Any) -> bool:
        """Return whether ``settings`` are those that were chosen, also in what was not searched."""
        searched = {name: settings[name] for name in SEARCHED}
        chosen = (trial.settings for trial in self.trials if (trial.cost, trial.kept) == (self.cost, self.kept))
        return searched in chosen and all(getattr(settings, name, None) == value for name, value in self.others)

    def __str__(self) -> str:
        """Return a table of the trials of the Pareto front, the chosen one marked."""
        return "\n".join(
            [
                f"{self.model}, {self.blocks} blocks, {self.images} images, keep {self.keep}: of {len(self.trials)} "
                "settings, those that none beats at the same or less cost",
                f"  {self.unit:>10} {'of unpatched':>12} {self.judge:>12}  setting",
                *(self._row(trial) for trial in front(self.trials)),
                f"  {self.unpatched_cost:10.4g} {1:12.1%} {1:12.4f}  unpatched",
            ]
        )

    def _row(self, trial: Trial) -> str:
        chosen = "*" if (trial.cost, trial.kept) == (self.cost, self.kept) else " "
        return f"{chosen} {trial.cost:10.4g} {trial.cost / self.unpatched_cost:12.1%} {trial.kept:12.4f}  {trial}"

    def mismatch(self, model: str, blocks: int, weights: tuple[float, ...], version: str) -> str | None:
        """Return in words how a model, or this library, differs from the one that was measured; None if it does not."""
        if (model, blocks) != (self.model, self.blocks):
            return f"on {self.model} with {self.blocks} blocks, and this is {model} with {blocks}"
        if weights and self.weights and not same(weights, self.weights):
            return f"on other weights of {model} than these"
        if version != self.version:
            return f"by algm_patch {self.version}, and this is {version}"
        return None


def weight_sample(projection: nn.Module) -> tuple[float, ...]:
    """Return a few weights of a module, evenly spaced; none while they have no values here (meta device, shards)."""
    weight = next(projection.parameters()).detach()
    if weight.is_meta or hasattr(weight, "full_tensor"):
        return ()
    chosen = [i * (weight.numel() - 1) // (SAMPLE - 1) for i in range(SAMPLE)]
    return tuple(weight.flatten()[chosen].float().tolist())


def same(weights: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return len(weights) == len(others) and bool(
        torch.allclose(torch.tensor(weights), torch.tensor(others), rtol=0, atol=ROUNDING * max(map(abs, others)))
    )
