"""The search for the front, by divergence and GFLOPs on the images that give thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

from .bench import Bench
from .family import THOUSAND, Family
from .look import Look, is_better
from .sensitivity import marginal_cost, marginal_costs, reweighted

Move = Callable[[Family], Family | None]
# The parts of the GFLOPs that the settings of the front save; at ANCHORS families are compared, in this order.
LEVELS = (0.2, 0.3, 0.38, 0.45, 0.5, 0.55, 0.6, 0.65)
ANCHORS, MIDDLE = (0.3, 0.45, 0.6), 0.45
# Where not even the largest shares save as much as the last level, levels are this part of what they save.
REACH = 0.9
# The steps by which the share of CLAP changes, and its limit.
STEP, MOST_CLAP = 0.15, 0.65
# How the logarithm of the divergence grows with what is saved, until two levels have shown it.
SLOPE = 10.0
# The part of the budget after which nothing more is searched, and what was found is verified.
SEARCH_PART = 0.55
# Steps toward equal marginal costs that are tried: powers of their ratio.
DAMPINGS = (0.5, 0.25)
# The images on which the merges' sensitivity is measured.
SENSITIVITY_IMAGES = 4


@dataclass
class Search:
    """Hold the best look of each level so far.

    Attributes:
        bench: measures.
        scale: what levels are multiplied with, so that they can be reached.
        families, looks: by level.
        tried: levels with families, once is enough.
    """

    bench: Bench
    scale: float
    families: dict[float, Family] = field(default_factory=dict)
    looks: dict[float, Look] = field(default_factory=dict)
    tried: set[tuple[float, Family]] = field(default_factory=set)

    def run(self) -> None:
        """Fill in the levels: a schedule at the anchors, other schedules there, weights of the layers, then the rest.

        Raises:
            OutOfTime: if the budget is spent; the looks so far are kept.
        """
        start = widest(self.bench)
        for level in ANCHORS:
            self.fill(level, start)
        best = start
        for level in ANCHORS:
            self.try_family(level, best)
            self.climb(level)
            best = self.families.get(level, best)
        self.balance()
        for level in LEVELS:
            if level not in self.looks:
                nearest = min(self.families, key=lambda other: (abs(other - level), other), default=None)
                if nearest is not None:
                    self.fill(level, self.families[nearest])

    def fill(self, level: float, family: Family) -> None:
        """Look at a family at a level, or if it does not save so much, at the same with more proposals."""
        if not self.try_family(level, family) and level not in self.looks:
            self.try_family(level, replace(family, matching="bipartite"))

    def try_family(self, level: float, family: Family) -> bool:
        """Look at a family at a level; return whether it is the best there so far."""
        if (level, family) in self.tried:
            return False
        self.tried.add((level, family))
        before = self.looks.get(level)
        found = self.bench.look_at(family, level * self.scale)
        if found is None or (before is not None and not is_better(found, before, self.slope)):
            return False
        self.looks[level], self.families[level] = found, family
        return True

    def climb(self, level: float) -> None:
        """Change one thing of a level's family at a time for as long as it gets better in the same direction."""
        if level not in self.families:
            return
        others = {"compare": self.bench.comparisons, "matching": ("bipartite", "mutual")}
        for change in moves(others):
            while (family := change(self.families[level])) is not None and self.try_family(level, family):
                pass

    def balance(self) -> None:
        """Weigh the layers of the middle level toward equal marginal cost; keep that where it diverges less."""
        if MIDDLE not in self.looks:
            return
        bench, family = self.bench, self.families[MIDDLE]
        look = partial(bench.look, count=SENSITIVITY_IMAGES)
        at, gflops = look(self.looks[MIDDLE].candidate), fmean(bench.reference.gflops)
        more = look(replace(at.candidate, clap=at.candidate.clap + round(THOUSAND * STEP)))
        if (cost := marginal_cost(at, more, gflops)) is not None:
            bench.sensitivity["CLAP 1"] = cost
        costs = marginal_costs(at, look, gflops)
        bench.sensitivity |= {f"GBM {named(group)}": cost for group, cost in costs.items()}
        for damping in DAMPINGS:
            if self.try_family(MIDDLE, reweighted(family, costs, damping)):
                for level in ANCHORS:
                    if level in self.families:
                        self.try_family(level, replace(self.families[level], weights=self.families[MIDDLE].weights))
                return

    @property
    def slope(self) -> float:
        """By how much the logarithm of the divergence grows with what is saved, over the anchors."""
        ends = sorted((look.saved, look.divergence) for look in self.looks.values() if look.divergence > 0)
        if len(ends) < 2 or ends[-1][0] - ends[0][0] < 0.05:
            return SLOPE
        (saved, least), (more, most) = ends[0], ends[-1]
        return max(0.0, math.log(most / least) / (more - saved))


def search(bench: Bench) -> list[tuple[Look, Family]]:
    """Return the best look of each level, and its family, least saved first; none if merging saves nothing."""
    most = bench.prediction.saved(widest(bench).at(1.0))
    if most <= 0:
        return []
    found = Search(bench, min(1.0, REACH * most / LEVELS[-1]))
    with bench.budget.part(SEARCH_PART):
        found.run()
    return sorted(((look, found.families[level]) for level, look in found.looks.items()), key=lambda one: one[0].saved)


def widest(bench: Bench) -> Family:
    """Return the family to begin with: GBM in every block up to the last but one, by keys if there are any."""
    return Family(clap=0.0, first=1, last=max(1, bench.depth - 1), compare=bench.comparisons[-1])


def moves(others: Mapping[str, Sequence[str]]) -> Iterator[Move]:
    """Yield the changes that are tried, each as a function that returns None where there is nothing to change.

    Args:
        others: values to try of other attributes, by name.
    """
    yield lambda family: replace(family, clap=family.clap + STEP) if family.clap + STEP < MOST_CLAP else None
    yield lambda family: replace(family, clap=max(0.0, family.clap - STEP)) if family.clap > 0 else None
    yield lambda family: replace(family, first=family.first + 1) if family.first < family.last else None
    yield lambda family: replace(family, first=family.first - 1) if family.first > 1 else None
    for name, values in others.items():
        for value in values:
            yield partial(with_value, name, value)


def with_value(name: str, value: str, family: Family) -> Family | None:
    """Return a family with another value of an attribute; None if it has this one."""
    return None if getattr(family, name) == value else replace(family, **{name: value})  # type: ignore[arg-type]


def named(layers: tuple[int, ...]) -> str:
    """Return the name of a group of layers."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
