"""The order in which ``algm_patch.tune`` tries candidates."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from .budget import OutOfTime
from .candidates import TWENTIETHS, Candidate, beginnings, neighbours
from .measure import Bench, Outcome

# Shares of CLAP to begin with, in twentieths, the fastest first. The first with which anything keeps enough is taken.
CLAP_SHARES = (5, 2, 1, 0)
# A candidate is better if it is cheaper by at least this part.
LEAST_GAIN = 0.002
# Twentieths by which a knob moves as long as only one side of its bracket is known.
STRIDE = 3


@dataclass(frozen=True)
class Best:
    """Hold the best candidate so far and how it did."""

    candidate: Candidate
    outcome: Outcome


def search(bench: Bench) -> None:
    """Measure candidates until no neighbour of the best is cheaper, or the budget is spent.

    Begins with common arrangements. Then moves to whichever neighbour is cheaper, each with its knob bracketed anew.
    ``bench.trials`` has the results.
    """
    depth, comparisons = bench.depth, bench.comparisons
    tried: set[Candidate] = set()

    def bracket_once(candidate: Candidate, best: Best | None) -> Best | None:
        arrangement = candidate.turned(0)
        if arrangement in tried or not candidate.merges:
            return best
        tried.add(arrangement)
        return bracket(bench, candidate, best)

    with suppress(OutOfTime):
        best: Best | None = None
        for clap in CLAP_SHARES:
            gentlest, *others = beginnings(clap, depth, comparisons)
            best = bracket_once(gentlest, None)
            if best is not None:
                for candidate in others:
                    best = bracket_once(candidate, best)
                break
        improved = best is not None
        while best is not None and improved:
            before = best
            for candidate in neighbours(before.candidate, depth, comparisons):
                best = bracket_once(candidate, before)
                if best is not before:
                    break
            improved = best is not before


def bracket(bench: Bench, candidate: Candidate, best: Best | None) -> Best | None:
    """Turn a candidate's knob up until too little is kept; return the best so far, which may be another candidate.

    Raises:
        OutOfTime: if the budget is spent.
    """
    keeps, loses = 0, TWENTIETHS  # the knob's values between which just enough is kept
    knob = candidate.knob
    while loses - keeps > 1:
        turned = candidate.turned(knob)
        outcome = bench.measure(turned, best.outcome if best else None)
        if outcome.keeps:
            keeps = knob
            if outcome.trial and (best is None or outcome.cost < best.outcome.cost * (1 - LEAST_GAIN)):
                best = Best(turned, outcome)
        else:
            loses = knob
            if best and outcome.cost > best.outcome.cost:  # with less merged it would cost more still
                return best
        knob = next_knob(keeps, loses)
    return best


def next_knob(keeps: int, loses: int) -> int:
    """Return the next value to try between one that keeps enough (0: none yet) and one that does not (20: none yet)."""
    if loses == TWENTIETHS:
        return min(keeps + STRIDE, TWENTIETHS - 1)
    if keeps == 0:
        return max(loses - STRIDE, 1)
    return (keeps + loses) // 2
