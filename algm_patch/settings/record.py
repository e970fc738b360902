"""Records of how settings were found, and on what model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import nn

from .table import table
from .trial import SEARCHED, Rival, Trial, check_parts

# Weights by which a checkpoint is known again, and how far they move, relative to the largest, by rounding to bfloat16.
SAMPLE = 8
ROUNDING = 2**-7
# Those that are no settings, but records of how settings came about.
RECORDS = ("record", "calibrated")


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
        images: how many, all together.
        held_back: how many of them told what is kept, and no threshold; 0: all of them told both, and no bound.
        keep: at least what was asked for, by name; the unpatched model keeps 1.
        kept: by these settings, by name: "pixels" and "classes", "correlation", "cosine" of tokens, or "metric".
        low: at least so much is kept on images that were not given, with 95 % confidence; empty: nothing tells.
        unit: of the costs, "GFLOPs" or "seconds", an image.
        cost: of these settings.
        unpatched_cost: of the model without them.
        trials: all settings that were measured on the images held back.
        others: names and values of the settings that were not searched.
        rivals: other ways to save, measured on the same images.
        sensitivity: divergence for each GFLOP that a merge saves if it merges more, by name of the merge.
        notes: sentences on what was not done, as that the search was cut short.
    """

    model: str
    blocks: int
    weights: tuple[float, ...]
    version: str
    images: int
    held_back: int
    keep: Mapping[str, float] = field(hash=False)
    kept: Mapping[str, float] = field(hash=False)
    low: Mapping[str, float] = field(hash=False)
    unit: str
    cost: float
    unpatched_cost: float
    trials: tuple[Trial, ...]
    others: tuple[tuple[str, Any], ...] = ()
    rivals: tuple[Rival, ...] = ()
    sensitivity: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        others = self.others if isinstance(self.others, tuple) else (None,)
        if not all(isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in others):
            raise ValueError(f"others holds names and values of settings; got {self.others!r:.80}")
        check_parts(self.keep, self.kept, self.low)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is kept."""
        return tuple(self.kept)

    @property
    def first(self) -> str:
        """The first name that was asked for, which ranks trials."""
        return next(iter(self.keep))

    @property
    def chosen(self) -> Trial | None:
        """The trial of these settings."""
        return next((trial for trial in self.trials if (trial.cost, trial.kept) == (self.cost, self.kept)), None)

    def choosing(self, trial: Trial) -> Record:
        """Return the same record for another one of its trials."""
        return replace(self, kept=trial.kept, low=trial.low, cost=trial.cost)

    def holds_for(self, settings: Any) -> bool:
        """Return whether ``settings`` are those that were chosen, also in what was not searched."""
        searched = {name: settings[name] for name in SEARCHED}
        chosen = (trial.settings for trial in self.trials if (trial.cost, trial.kept) == (self.cost, self.kept))
        return searched in chosen and all(getattr(settings, name, None) == value for name, value in self.others)

    def __str__(self) -> str:
        return table(self)

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
