"""Which settings :func:`algm_patch.tune` tries, and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..settings.settings import Compare
from .measure import TWENTIETHS, Bench, Outcome, OutOfTime

# The shares of CLAP to begin with: the first with which anything keeps enough.
BEGINNINGS = (5, 2, 1, 0)
# Cheaper by less than this is not worth a further search.
WORTH = 0.002


@dataclass(frozen=True)
class Candidate:
    """Settings by what share merges, in twentieths: of the windows, and of the proposals in each layer of GBM."""

    clap_layer: int
    clap: int
    gbm_layers: tuple[int, ...]
    gbm: int
    compare: Compare

    @property
    def knob(self) -> int:
        """The share that is turned until just enough is kept: of GBM, or of CLAP if that is alone."""
        return self.gbm if self.gbm_layers else self.clap

    def turned(self, knob: int) -> Candidate:
        return replace(self, gbm=knob) if self.gbm_layers else replace(self, clap=knob)


def search(bench: Bench) -> None:
    """Measure candidates until nothing is cheaper or the time is up.

    From common arrangements on, to whichever differs in one thing and is cheaper, with the knob bracketed anew.
    """
    best: tuple[Candidate, Outcome] | None = None
    tried = set()

    def improves(candidate: Candidate) -> bool:
        nonlocal best
        shape = candidate.turned(0)
        if shape in tried or not (candidate.clap or candidate.gbm_layers):
            return False
        tried.add(shape)
        before = best
        for found in bracket(bench, candidate, best):
            best = found
        return best is not before

    try:
        for clap in BEGINNINGS:
            gentlest, *others = beginnings(clap, bench.depth, bench.comparisons)
            if improves(gentlest):
                for candidate in others:
                    improves(candidate)
                break
        while best and any(map(improves, neighbours(best[0], bench.depth, bench.comparisons))):
            pass
    except OutOfTime:
        pass


def bracket(
    bench: Bench, candidate: Candidate, best: tuple[Candidate, Outcome] | None
) -> Iterator[tuple[Candidate, Outcome]]:
    """Turn the knob up to where too little is kept; yields what keeps enough and is cheaper than all before."""
    keeps, loses = 0, TWENTIETHS
    at = candidate.knob
    while loses - keeps > 1:
        here = candidate.turned(at)
        outcome = bench.measure(here, best[1] if best else None)
        if outcome.keeps:
            keeps = at
            if outcome.trial and (best is None or outcome.cost < best[1].cost * (1 - WORTH)):
                best = here, outcome
                yield best
        else:
            loses = at
            if best and outcome.cost > best[1].cost:  # and with less merged it would cost more
                return
        if loses == TWENTIETHS:
            at = min(keeps + 3, TWENTIETHS - 1)
        elif keeps == 0:
            at = max(loses - 3, 1)
        else:
            at = (keeps + loses) // 2


def beginnings(clap: int, depth: int, comparisons: Sequence[Compare]) -> Iterator[Candidate]:
    """Common arrangements: the paper's (supplement, Tab. 1), and GBM in every layer, every second or third.

    Where GBM runs often, keys tell better than tokens what may merge (benchmarks/results/tuning_camvid.txt).
    """
    yield Candidate(clap_layer=1, clap=clap, gbm_layers=(max(1, round(depth * 5 / 12)),), gbm=8, compare=comparisons[0])
    for first, step in ((2, 1), (3, 2), (3, 3)):
        layers = tuple(range(first, depth - 1, step))
        if layers:
            often = max(4, 9 - len(layers) // 2)
            yield Candidate(clap_layer=1, clap=clap, gbm_layers=layers, gbm=often, compare=comparisons[-1])


def neighbours(at: Candidate, depth: int, comparisons: Sequence[Compare]) -> Iterator[Candidate]:
    """Those that differ in one thing."""
    for clap in (at.clap + 2, max(at.clap - 2, 0)):
        if clap < TWENTIETHS:
            yield replace(at, clap=clap)
    for compare in comparisons:
        yield replace(at, compare=compare)
    layers = set(at.gbm_layers)
    for layer in range(at.clap_layer, depth):
        yield replace(at, gbm_layers=tuple(sorted(layers ^ {layer})))
    for change in (1, -1):
        moved = tuple(layer + change for layer in at.gbm_layers)
        if all(at.clap_layer <= layer < depth for layer in moved):
            yield replace(at, gbm_layers=moved)
    for change in (1, -1):
        if 1 <= at.clap_layer + change <= min((depth, *at.gbm_layers)):
            yield replace(at, clap_layer=at.clap_layer + change)
