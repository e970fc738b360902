"""Check what a user asks to keep, and tell what a judge finds kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from .bootstrap import lower_bound, resampled
from .judges import Judge

Keep = float | Mapping[str, float]


def check_keep(keep: Any) -> None:
    """Raise ValueError unless this is a part above 0 and at most 1, or a dict with such a part for each name."""
    parts = list(keep.values()) if isinstance(keep, Mapping) else [keep]
    if not parts or not all(isinstance(part, Real) and 0 < float(part) <= 1 for part in parts):
        raise ValueError(
            "keep is the part of the answer to keep, above 0 and at most 1, or a dict with such parts, as in "
            f"{{'pixels': 0.97, 'classes': 0.85}}; got {keep!r}"
        )


def wanted(keep: Keep, names: Sequence[str]) -> dict[str, float]:
    """Return by name the least part to keep; a number is meant for the first of the names.

    Raises:
        ValueError: if a name is not among ``names``.
    """
    if not isinstance(keep, Mapping):
        return {names[0]: float(keep)}
    if unknown := [name for name in keep if name not in names]:
        raise ValueError(f"keep asks for {unknown[0]!r}, but what is kept here is {' and '.join(map(repr, names))}")
    return {name: float(part) for name, part in keep.items()}


def kept_and_bound(judge: Judge, compared: Sequence[Any], bounded: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Return by name what is kept over all images, and the bound that it stays above on others with 95 % confidence.

    Args:
        compared: what ``judge.compare`` found of each image.
        bounded: whether to estimate the bound; there is none otherwise.
    """
    table = judge.pool(compared)
    kept = {name: found.item() for name, found in judge.measure(table.sum(0)).items()}
    if not bounded:
        return kept, {}
    return kept, {name: lower_bound(found) for name, found in judge.measure(resampled(table)).items()}
