"""The verification of what a search found, on the images held back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..settings.trial import Trial
from .bench import Bench
from .family import Family
from .look import Look

# New settings between two levels, one that keeps enough and one that does not, so that just enough is kept;
# twice as many as long as none keeps enough.
REFINEMENTS = 2
# They are this far from either, as a part of the distance.
INSIDE = 0.1

# A look that was verified: its trial.
Verified = dict[int, Trial]


def verify_front(bench: Bench, found: Sequence[tuple[Look, Family]]) -> None:
    """Measure looks on the images that tell what is kept, those around what is asked for first, then all others.

    Args:
        found: as `search` returns them, those that save least first.

    Raises:
        OutOfTime: if the budget is spent; ``bench.trials`` has what was measured.
    """
    verified: Verified = {}
    last = bisect(bench, found, verified)
    refine(bench, found, verified, last)
    for index in sorted(range(len(found)), key=lambda index: abs(index - last)):
        verify_once(bench, found, verified, index)


def verify_once(bench: Bench, found: Sequence[tuple[Look, Family]], verified: Verified, index: int) -> Trial:
    """Return the trial of a look, measured if it was not yet."""
    if index not in verified:
        verified[index] = bench.verify(found[index][0].settings)
    return verified[index]


def bisect(bench: Bench, found: Sequence[tuple[Look, Family]], verified: Verified) -> int:
    """Return the index of the look that saves most and keeps enough, if those that save less keep more; -1: none."""
    keeps, loses = -1, len(found)
    while loses - keeps > 1:
        middle = (keeps + loses) // 2
        if verify_once(bench, found, verified, middle).keeps(bench.keep):
            keeps = middle
        else:
            loses = middle
    return keeps


def refine(bench: Bench, found: Sequence[tuple[Look, Family]], verified: Verified, last: int) -> None:
    """Measure settings between the last that keep enough and the first that do not."""
    if last + 1 == len(found):
        return
    (look, family), trial = found[max(last, 0)], verified[max(last, 0)]
    low = (bench.saved(trial), loss(bench, trial)) if last >= 0 else (0.0, 0.0)
    high = (bench.saved(verified[last + 1]), loss(bench, verified[last + 1]))
    for attempt in range(2 * REFINEMENTS):
        if attempt >= REFINEMENTS and low[0] > 0:
            return
        # By thresholds for all images, and on other ones, settings save more or less than by shares of each image.
        shares_save = look.saved / bench.saved(trial) if bench.saved(trial) > 0 else 1.0
        between = bench.look_at(family, between_losses(low, high) * shares_save)
        if between is None:
            return
        look, trial = between, bench.verify(between.settings)
        if trial.keeps(bench.keep):
            low = (bench.saved(trial), loss(bench, trial))
        else:
            high = (bench.saved(trial), loss(bench, trial))


def loss(bench: Bench, trial: Trial) -> float:
    """Return what is lost as a part of what may be lost, of the name where that is most."""
    parts = ((1 - trial.surely_kept[name], 1 - keep) for name, keep in bench.keep.items())
    return max(lost / allowed if allowed > 0 else math.inf for lost, allowed in parts)


def between_losses(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Return what to save so that just what may be lost is lost (1), between two pairs of saved and lost.

    The logarithm of what is lost grows evenly with what is saved. Without a loss to go by it is in the middle.
    """
    (saved, lost), (more, most) = low, high
    place = -math.log(lost) / math.log(most / lost) if 0 < lost < most < math.inf else 0.5
    return saved + min(max(place, INSIDE), 1 - INSIDE) * (more - saved)
