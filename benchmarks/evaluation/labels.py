"""Translate the values of label files to labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IGNORED = 255  # the ignored label of the published data sets
INVALID = -1  # the entry of a value that must not occur

Table = NDArray[np.int64]


def table_of(labels: dict[int, int]) -> Table:
    """Return the label of each value as an array [max + 1], ``INVALID`` where there is none."""
    table = np.full(max(labels.keys() | {255}) + 1, INVALID, np.int64)
    for value, label in labels.items():
        if value >= 0:
            table[value] = label
    return table


def identity_table(classes: int, ignore: int | None = IGNORED) -> Table:
    """Return a table in which values are labels."""
    return table_of({label: label for label in range(classes)} | ({} if ignore is None else {ignore: ignore}))


def shifted_table(classes: int) -> Table:
    """Return a table in which value 1 is label 0, and value 0 is ignored."""
    return table_of({0: IGNORED, **{label + 1: label for label in range(classes)}})


def all_valid(values: NDArray[np.integer], table: Table) -> bool:
    """Return whether every value has a label."""
    return bool(values.max(initial=0) < len(table) and (table[values] != INVALID).all())


def allowed_values(table: Table) -> str:
    """Return the values that a label file may hold, such as "0 to 10, 255"."""
    values = np.flatnonzero(table != INVALID)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
