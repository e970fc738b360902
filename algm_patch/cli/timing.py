"""Timing of models in turns, so that whatever else slows the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor
from tqdm import tqdm

from ..tuning.cost import synchronize


def seconds_in_turns(forwards: Sequence[Callable[[Tensor], object]], images: Tensor, rounds: int) -> list[list[float]]:
    """Return, for each of some forwards, the seconds that it takes on the images in each round."""
    spent: list[list[float]] = [[] for _ in forwards]
    for forward in forwards:  # the first call is slower
        forward(images)
    for _ in tqdm(range(rounds), "measuring", leave=False):
        for forward, seconds in zip(forwards, spent, strict=True):
            start = time.perf_counter()
            forward(images)
            synchronize(images)
            seconds.append(time.perf_counter() - start)
    return spent
