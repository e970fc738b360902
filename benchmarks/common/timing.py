"""Time what runs, several variants in turns, so that a change in the machine's speed meets all of them alike."""

from __future__ import annotations

import operator
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")


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


def median_ratio(spent: Iterable[float], others: Iterable[float]) -> float:
    """Return the median over rounds of the first seconds divided by the second."""
    return statistics.median(map(operator.truediv, spent, others))


def device_name(device: str | torch.device) -> str:
    """Return the name of a GPU, or the number of threads of a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"
