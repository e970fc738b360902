"""The choice of a trial from a record, without measuring anew."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from .trial import Trial


def chosen(record: Any, gflops: float | None, keep: float | Mapping[str, float] | None) -> Trial:
    """Return the trial of a record that ``Settings.at`` is asked for.

    Raises:
        ValueError: if none is there, or not exactly one of ``gflops`` and ``keep`` is given.
    """
    if (gflops is None) == (keep is None):
        raise ValueError("at takes one of gflops and keep, as in at(gflops=0.5) or at(keep=0.97)")
    return at_cost(record, gflops) if keep is None else at_kept(record, keep)


def at_cost(record: Any, part: float | None) -> Trial:
    """Return the trial that keeps most for at most this part of the unpatched model's GFLOPs."""
    if record.unit != "GFLOPs":
        raise ValueError(
            f"at(gflops={part!r}): the costs of this record are {record.unit}. Ask at(keep=...), or tune with "
            "cost='gflops'"
        )
    if not isinstance(part, Real) or not 0 < part <= 1:
        raise ValueError(f"at: gflops is a part of the unpatched model's, above 0 and at most 1; got {part!r}")
    parts = [trial.cost / record.unpatched_cost for trial in record.trials]
    found = [trial for trial, own in zip(record.trials, parts, strict=True) if own <= part]
    if not found:
        raise ValueError(
            f"at(gflops={part!r}): no settings of this record cost so little. They span {min(parts):.3f} to "
            f"{max(parts):.3f} of the unpatched model's GFLOPs"
        )
    return max(found, key=lambda trial: trial.surely_kept[record.first])


def at_kept(record: Any, keep: float | Mapping[str, float]) -> Trial:
    """Return the cheapest trial of which the bound is at least this, and which costs less than the unpatched model."""
    parts = dict(keep) if isinstance(keep, Mapping) else {record.first: keep}
    if unknown := [name for name in parts if name not in record.names]:
        raise ValueError(
            f"at(keep={keep!r}): this record knows {', '.join(map(repr, record.names))}, not {unknown[0]!r}"
        )
    found = [trial for trial in record.trials if trial.keeps(parts) and trial.cost < record.unpatched_cost]
    if not found:
        bounds = {name: [trial.surely_kept[name] for trial in record.trials] for name in parts}
        spans = "; ".join(f"{name} {min(own):.4f} to {max(own):.4f}" for name, own in bounds.items())
        raise ValueError(f"at(keep={keep!r}): no settings of this record surely keep so much. They span {spans}")
    return min(found, key=lambda trial: trial.cost)
