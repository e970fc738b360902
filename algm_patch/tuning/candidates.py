"""Arrangements that ``algm_patch.tune`` tries: the first ones, and those next to a good one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..settings.settings import Compare

# Shares are whole numbers of twentieths.
TWENTIETHS = 20


@dataclass(frozen=True)
class Candidate:
    """Say what merges where, by shares instead of thresholds.

    Attributes:
        clap_layer: the block of CLAP, counted from 1.
        clap: the share of windows that merge, in twentieths; 0 switches CLAP off.
        gbm_layers: the blocks of GBM, counted from 1, in rising order.
        gbm: the share of proposals that merge in each block of GBM, in twentieths.
        compare: the vectors whose cosine decides, as in ``Settings``.
    """

    clap_layer: int
    clap: int
    gbm_layers: tuple[int, ...]
    gbm: int
    compare: Compare

    @property
    def knob(self) -> int:
        """The share that a search turns until just enough is kept: that of GBM, or that of CLAP without GBM."""
        return self.gbm if self.gbm_layers else self.clap

    def turned(self, knob: int) -> Candidate:
        """Return the same arrangement with another value of its knob."""
        return replace(self, gbm=knob) if self.gbm_layers else replace(self, clap=knob)

    @property
    def merges(self) -> bool:
        """True unless both stages are off."""
        return bool(self.clap or self.gbm_layers)


def beginnings(clap: int, depth: int, comparisons: Sequence[Compare]) -> Iterator[Candidate]:
    """Yield common arrangements: the paper's (supplement, Tab. 1), then GBM in every layer, every second, every third.

    Where GBM runs often, keys tell better than tokens what may merge (benchmarks/results/tuning_camvid.txt).

    Args:
        clap: the share of CLAP, in twentieths.
        depth: the number of blocks of the ViT.
        comparisons: what can be compared in the ViT.
    """
    yield Candidate(clap_layer=1, clap=clap, gbm_layers=(max(1, round(depth * 5 / 12)),), gbm=8, compare=comparisons[0])
    for first, step in ((2, 1), (3, 2), (3, 3)):
        layers = tuple(range(first, depth - 1, step))
        if layers:
            gentle = max(4, 9 - len(layers) // 2)  # the more often GBM runs, the less it merges at once
            yield Candidate(clap_layer=1, clap=clap, gbm_layers=layers, gbm=gentle, compare=comparisons[-1])


def neighbours(candidate: Candidate, depth: int, comparisons: Sequence[Compare]) -> Iterator[Candidate]:
    """Yield candidates that differ from one in one thing; ``depth`` and ``comparisons`` as for ``beginnings``."""
    for clap in (candidate.clap + 2, max(candidate.clap - 2, 0)):
        if clap < TWENTIETHS:
            yield replace(candidate, clap=clap)
    for compare in comparisons:
        yield replace(candidate, compare=compare)
    layers = set(candidate.gbm_layers)
    for layer in range(candidate.clap_layer, depth):
        yield replace(candidate, gbm_layers=tuple(sorted(layers ^ {layer})))
    for change in (1, -1):
        moved = tuple(layer + change for layer in candidate.gbm_layers)
        if all(candidate.clap_layer <= layer < depth for layer in moved):
            yield replace(candidate, gbm_layers=moved)
    for change in (1, -1):
        if 1 <= candidate.clap_layer + change <= min((depth, *candidate.gbm_layers)):
            yield replace(candidate, clap_layer=candidate.clap_layer + change)
