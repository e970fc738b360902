"""A record of ``algm_patch.tune`` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .trial import Rival, Trial, front


def table(record: Any) -> str:
    """Return the trials of the Pareto front with the chosen one marked, and what they are compared with."""
    lines = [
        f"{record.model}, {record.blocks} blocks, {record.images} images, keep {asked(record.keep)}: of "
        f"{len(record.trials)} settings, those that none beats at the same or less cost",
        how_measured(record),
        f"  {record.unit:>10} {'of unpatched':>12}{''.join(f' {name:>17}' for name in record.names)}  setting",
        *(row(record, trial, trial == record.chosen) for trial in front(record.trials, record.first)),
        f"  {record.unpatched_cost:10.4g} {1:12.1%}{f' {1:8.4f}         ' * len(record.names)}  unpatched",
    ]
    if record.rivals:
        lines += ["compared with, on the same images:", *(row(record, rival, False) for rival in record.rivals)]
    if record.sensitivity:
        costs = ", ".join(f"{name}: {cost:.2g}" for name, cost in record.sensitivity)
        lines.append(f"divergence for each GFLOP that more merging saves, near 45 % saved: {costs}")
    return "\n".join([*lines, *record.notes])


def asked(keep: Mapping[str, float]) -> str:
    """Return what was asked to keep, as text."""
    return ", ".join(f"{name} {part:g}" for name, part in keep.items())


def how_measured(record: Any) -> str:
    """Return in words which images told what."""
    if not record.held_back:
        return "thresholds and what is kept are of the same images; no bound on what is kept on others"
    others = record.images - record.held_back
    bound = " (in brackets: at least so much on unseen images, with 95 % confidence)" if record.low else ""
    return f"thresholds from {others} images, what is kept measured on the {record.held_back} held back{bound}"


def row(record: Any, tried: Trial | Rival, chosen: bool) -> str:
    """Return the line of one trial."""
    kept = "".join(f" {tried.kept[name]:8.4f} {bound(tried.low, name)}" for name in record.names)
    part = tried.cost / record.unpatched_cost
    return f"{'*' if chosen else ' '} {tried.cost:10.4g} {part:12.1%}{kept}  {tried}"


def bound(low: Mapping[str, float], name: str) -> str:
    """Return the bound of what is kept, in brackets, or blanks."""
    return f"({low[name]:.4f})" if low else " " * 8
