"""Schedules of merges that differ in one number, the share of its proposals that each merge carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..core.thresholds import Share
from ..settings.settings import Compare, Matching, Settings

# Shares are whole numbers of thousandths; no merge carries out more of its proposals than this.
THOUSAND, MOST = 1000, 0.95


@dataclass(frozen=True)
class Candidate:
    """Say what merges where, by shares instead of thresholds.

    Attributes:
        clap: the share of windows that CLAP merges in block 1, in thousandths; 0 switches CLAP off.
        shares: of the proposals that GBM carries out, in thousandths, by block counted from 1; none is 0.
        compare, matching: the vectors whose cosine decides, and who proposes, as in ``Settings``.
    """

    clap: int
    shares: tuple[tuple[int, int], ...]
    compare: Compare
    matching: Matching = "bipartite"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(layer for layer, _ in self.shares)

    def changed(self, layers: tuple[int, ...], factor: float) -> Candidate:
        """Return the same candidate with the shares of some layers multiplied."""
        more = {layer: thousandths(own * factor / THOUSAND) for layer, own in self.shares if layer in layers}
        return replace(self, shares=tuple({**dict(self.shares), **more}.items()))

    def settings(self, base: Settings) -> Settings:
        """Return ``base``, which merges nothing, with these merges by shares of each image's own similarities."""
        return self.with_thresholds(base, Share(self.clap, THOUSAND), [Share(own, THOUSAND) for _, own in self.shares])

    def with_thresholds(self, base: Settings, tau: float | Share, gbm_tau: list[float] | list[Share]) -> Settings:
        """Return ``base``, which merges nothing, with these merges by thresholds: CLAP's, and GBM's for each layer."""
        settings = replace(base, compare=self.compare, matching=self.matching)
        if self.clap:
            settings = replace(settings, clap_layer=1, tau=tau)
        if self.shares:
            settings = replace(settings, gbm_layers=self.layers, gbm_tau=tuple(gbm_tau))
        return settings


@dataclass(frozen=True)
class Family:
    """Hold what candidates have in common that differ in how much they merge.

    Attributes:
        clap: the share of windows that CLAP merges in block 1; 0: no CLAP.
        first, last: the blocks, counted from 1, from which to which GBM merges in every one.
        compare, matching: as in ``Settings``.
        weights: by block, what the common share is multiplied with there; 1 where none is given.
    """

    clap: float
    first: int
    last: int
    compare: Compare
    matching: Matching = "mutual"
    weights: tuple[tuple[int, float], ...] = ()

    def at(self, share: float) -> Candidate:
        """Return the candidate of a common share of the proposals."""
        weights: Mapping[int, float] = dict(self.weights)
        layers = range(self.first, self.last + 1)
        shares = ((layer, thousandths(share * weights.get(layer, 1.0))) for layer in layers)
        merging = tuple(own for own in shares if own[1])
        return Candidate(round(THOUSAND * self.clap), merging, self.compare, self.matching)


def thousandths(share: float) -> int:
    """Return a share in thousandths, at most MOST."""
    return min(round(THOUSAND * share), round(THOUSAND * MOST))
