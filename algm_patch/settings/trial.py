"""Settings that were tried, others that they are compared with, and the front of those that none beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

# The settings that tune searches.
SEARCHED = ("clap_layer", "tau", "gbm_layers", "gbm_tau", "compare", "matching")


@dataclass(frozen=True)
class Trial:
    """Hold settings that were tried, what they keep of the answers, and what they cost.

    Attributes:
        kept: by name ("pixels", "classes", ...), of the unpatched model's answers.
        cost: an image.
        low: by name, what is kept on other images with 95 % confidence; empty if there was nothing to estimate it from.
    """

    clap_layer: int | None
    tau: float
    gbm_layers: tuple[int, ...]
    gbm_tau: float | tuple[float, ...] | str
    compare: str
    kept: Mapping[str, float] = field(hash=False)
    cost: float
    low: Mapping[str, float] = field(default_factory=dict, hash=False)
    matching: str = "bipartite"

    def __post_init__(self) -> None:
        check_parts(self.kept, self.low)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings alone, by name."""
        return {name: getattr(self, name) for name in SEARCHED}

    @property
    def surely_kept(self) -> Mapping[str, float]:
        """The bound of what is kept, by name; without one, what was measured."""
        return self.low or self.kept

    def keeps(self, keep: Mapping[str, float]) -> bool:
        """Return whether at least these parts are kept, by name, as far as can be said of other images."""
        return all(self.surely_kept[name] >= part for name, part in keep.items())

    def __str__(self) -> str:
        clap, gbm = "no CLAP", "no GBM"
        if self.clap_layer is not None:
            clap = f"CLAP {self.clap_layer}, tau {self.tau:.4f}"
        if self.gbm_layers:  # without, its threshold is the name of a rule
            taus = self.gbm_tau if isinstance(self.gbm_tau, tuple) else (self.gbm_tau,)
            numbers = (tau if isinstance(tau, str) else f"{tau:.4g}" for tau in taus)
            mutual = " mutual" if self.matching == "mutual" else ""
            gbm = f"GBM{mutual} {' '.join(map(str, self.gbm_layers))}, tau {' '.join(numbers)}"
        return f"{clap}; {gbm}{f'; by {self.compare}' if self.compare != 'token' else ''}"


@dataclass(frozen=True)
class Rival:
    """Hold another way to save the same, which was measured on the same images: its name, and as of a `Trial`."""

    name: str
    kept: Mapping[str, float] = field(hash=False)
    cost: float
    low: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_parts(self.kept, self.low)

    def __str__(self) -> str:
        return self.name


def check_parts(*kept: Any) -> None:
    """Raise ValueError unless each of these holds numbers by name, as a file that was edited may not."""
    for each in kept:
        if not isinstance(each, Mapping) or not all(isinstance(part, Real) for part in each.values()):
            raise ValueError(f"what is kept is a number for each name; got {each!r:.80}")


def front(trials: Iterable[Trial], name: str) -> list[Trial]:
    """Return the Pareto front, cheapest first: trials that no trial of the same or less cost beats.

    Args:
        name: of what is kept.
    """
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.cost, -trial.kept[name])):
        if not best or trial.kept[name] > best[-1].kept[name]:
            best.append(trial)
    return best
