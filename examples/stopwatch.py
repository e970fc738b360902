"""Measure how long functions take, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def milliseconds(functions: Sequence[Callable[[], Any]], rounds: int = 9) -> list[float]:
    """Return the median time of each function. They run in turns, so that a busy machine slows all of them alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, spent in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            spent.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(spent) for spent in times]
