"""Measure what each merge costs in divergence for what it saves, and move shares toward equal costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from .family import Candidate, Family
from .look import Look

# Layers are changed in so many groups of neighbours at most, their shares multiplied by FACTOR, one group at a time.
GROUPS, FACTOR = 12, 1.5
# A step changes a weight at most by this factor or its inverse.
LARGEST = 1.5
# A merge that seems to cost nothing, by the scatter of measurement, costs this part of the mean.
LEAST = 0.1


def groups_of(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Return layers in groups of neighbours: single ones, or at most GROUPS of almost equal size."""
    count = min(GROUPS, len(layers))
    ends = [len(layers) * index // count for index in range(count + 1)] if count else []
    return [tuple(layers[start:end]) for start, end in pairwise(ends)]


def marginal_costs(at: Look, look: Callable[[Candidate], Look], gflops: float) -> dict[tuple[int, ...], float]:
    """Return for each group of layers the divergence for each GFLOP that it saves if it merges more, in context.

    Args:
        at: the candidate whose shares are changed, one group at a time.
        look: looks at a candidate on the same images.
        gflops: of the unpatched model.
    """
    found = {}
    for group in groups_of(at.candidate.layers):
        if (cost := marginal_cost(at, look(at.candidate.changed(group, FACTOR)), gflops)) is not None:
            found[group] = cost
    return found


def marginal_cost(at: Look, more: Look, gflops: float) -> float | None:
    """Return the divergence for each GFLOP that a look saves more than another; None if it saves nothing more."""
    saved = (more.saved - at.saved) * gflops
    return (more.divergence - at.divergence) / saved if saved > 0 else None


def reweighted(family: Family, costs: Mapping[tuple[int, ...], float], damping: float) -> Family:
    """Return a family whose weights have made one damped step toward equal marginal costs.

    The cheaper a layer is, the more it merges. Layers whose cost is not known keep their weight.

    Args:
        costs: as `marginal_costs` returns them.
        damping: the power of the ratio of costs by which weights change, below 1.
    """
    if not costs or (mean := sum(costs.values()) / len(costs)) <= 0:
        return family
    weights = dict.fromkeys(range(family.first, family.last + 1), 1.0) | dict(family.weights)
    for group, cost in costs.items():
        step = (mean / max(cost, LEAST * mean)) ** damping
        for layer in group:
            weights[layer] *= min(max(step, 1 / LARGEST), LARGEST)
    return replace(family, weights=tuple(sorted(weights.items())))
