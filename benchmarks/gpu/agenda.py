"""List what there is to measure, in the order of importance."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .bars import GAINS_ALONE
from .methods import FIXED, METHODS, PLAIN, THRESHOLDS, TOME, UNPATCHED
from .networks import NETWORKS
from .tables import (
    COMPILED,
    EAGER,
    GRAPHS,
    Row,
    condition_rows,
    correctness_rows,
    kernel_rows,
    speed_rows,
    split_rows,
    synchronisation_rows,
)

ESSENTIAL = (UNPATCHED, FIXED)
# A CUDA graph has one shape; thresholds leave many.
FURTHER = {COMPILED: (UNPATCHED, PLAIN, THRESHOLDS, TOME), GRAPHS: (UNPATCHED, PLAIN, TOME)}


@dataclass(frozen=True)
class Task:
    """Hold a function that measures rows of a table."""

    table: str
    name: str
    measure: Callable[[], list[Row]]


def agenda(options: argparse.Namespace) -> list[Task]:
    """Return all tasks, the most important first."""
    names, most, least = options.models, max(options.batches), min(options.batches)
    between = sorted({*options.batches} - {most, least}, reverse=True)
    large = [name for name in names if NETWORKS[name].size > 512]  # slow in float64 on a CPU
    small = [name for name in names if name not in large]
    on_gpu = options.device == "cuda"

    def speed(mode: str, batch: int, methods: Sequence[str], names: Iterable[str] = names) -> Iterator[Task]:
        for name in names if mode in options.modes else ():
            measure = partial(speed_rows, options, name, mode, batch, methods)
            yield Task("speed", f"{name}, {mode}, batch {batch}: {'; '.join(methods)}", measure)

    def each(table: str, text: str, names: Iterable[str], measure: Callable[..., list[Row]], *args: Any) -> list[Task]:
        return [Task(table, f"{name}: {text}", partial(measure, options, name, *args)) for name in names]

    def waits(batch: int) -> list[Task]:
        text = f"host synchronisations, batch {batch}"
        return each("synchronisations", text, names[:1] * on_gpu, synchronisation_rows, batch)

    tasks = [
        *speed(EAGER, most, METHODS),
        *each("split", f"where the time goes, batch {most}", names, split_rows, most),
        *each("correctness", "error against float64", small, correctness_rows),
        *waits(most),
        *waits(least),
        *each("conditions", "under all conditions", names[:1], condition_rows, least),
        *each("kernels", f"attention kernels, batch {most}", names, kernel_rows, most),
        *speed(GRAPHS, least, ESSENTIAL, [name for name in names if name in GAINS_ALONE]),
        *speed(GRAPHS, most, ESSENTIAL),
        *speed(EAGER, least, METHODS),
        *speed(COMPILED, most, ESSENTIAL),
        *speed(GRAPHS, least, ESSENTIAL),
        *speed(COMPILED, least, ESSENTIAL),
        *(task for batch in between for task in speed(EAGER, batch, METHODS)),
        *each("split", f"where the time goes, batch {least}", names, split_rows, least),
        *each("correctness", "error against float64", large, correctness_rows),
        *(task for batch in between for mode in FURTHER for task in speed(mode, batch, ESSENTIAL)),
        *(task for batch in (most, least, *between) for mode in FURTHER for task in speed(mode, batch, FURTHER[mode])),
    ]
    return list({task.name: task for task in tasks}.values())  # no task twice
