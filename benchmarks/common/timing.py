"""Time what runs, several variants in turns, so that a change in the machine's speed meets all of them alike."""

from __future__ import annotations

import math
import operator
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")

# A turn of short calls lasts at least so many seconds, as far as so many calls suffice.
TURN, MOST_CALLS = 0.05, 100


def seconds(function: Callable[..., object], *args: Any) -> float:
    """Return the seconds of one call, until the GPU, if there is one, has finished."""
    synchronize()
    start = time.perf_counter()
    function(*args)
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(timers: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, list[float]]:
    """Call all timers in each round, in a new random order every time.

    Args:
        timers: each runs one variant and returns the seconds that count.
        rounds: how often every timer is called.

    Returns:
        The seconds of each variant, one number for each round.
    """
    order = random.Random(0)
    spent: dict[Name, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name in order.sample(list(timers), len(timers)):
            spent[name].append(timers[name]())
    return spent


def calls_in_turns(runs: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Return the seconds of one call of each, in each round.

    Short ones are called back to back, up to ``MOST_CALLS`` times in a turn, so that their launches on a GPU overlap.
    """
    calls = {name: min(MOST_CALLS, math.ceil(TURN / seconds_per_call(run, 1))) for name, run in runs.items()}
    return in_turns({name: partial(seconds_per_call, run, calls[name]) for name, run in runs.items()}, rounds)


def seconds_per_call(run: Callable[[], object], calls: int) -> float:
    """Return the seconds of a call, averaged over several back to back."""

    def call_all() -> None:
        for _ in range(calls):
            run()

    return seconds(call_all) / calls


def median_ratio(spent: Iterable[float], others: Iterable[float]) -> float:
    """Return the median over rounds of the first seconds divided by the second."""
    return statistics.median(map(operator.truediv, spent, others))


def device_name(device: str | torch.device) -> str:
    """Return the name of a GPU, or the number of threads of a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"
