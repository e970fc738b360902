"""Hold the points of the trade-off, print them, and write them as a CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

METHODS = ("2×2 pooling", "ToMe", "ALGM as published", "ALGM defaults", "ALGM tuned")
TUNED = METHODS[-1]


@dataclass(frozen=True)
class Point:
    """Hold what a method gives and takes at one setting.

    Attributes:
        method, setting: as in ``Method``.
        miou: percent.
        agreement: percent of the pixels that are predicted as by the unpatched model.
        gflops: of the ViT, for an image.
        time: time of a forward pass divided by the unpatched model's.
    """

    method: str
    setting: str
    miou: float
    agreement: float
    gflops: float
    time: float


def table(points: Sequence[Point]) -> str:
    """Return the points as a table."""
    lines = [f"{'':30}{'mIoU':>7}{'agrees':>9}{'GFLOPs':>8}{'fewer':>8}{'time':>7}"]
    for point in points:
        lines.append(
            f"{f'{point.method} {point.setting}':30}{point.miou:7.1f}{point.agreement:7.1f} %{point.gflops:8.1f}"
            f"{1 - point.gflops / points[0].gflops:8.0%}{point.time:7.2f}"
        )
    return "\n".join(lines)


def margins(points: Sequence[Point]) -> str:
    """Return how far tuned ALGM is above each other curve at the same cost; empty if nothing is tuned."""
    tuned = curve_of(points, TUNED)
    others = [method for method in METHODS if method != TUNED and curve_of(points, method)]
    if not tuned or not others:
        return ""
    lines = ["mIoU of ALGM tuned minus that of each curve, interpolated at the same GFLOPs / the same time"]
    lines.append(f"{'':16}" + "".join(f"{method:>20}" for method in others))
    for point in tuned:
        pairs = [[margin(point, curve_of(points, method), cost) for cost in ("gflops", "time")] for method in others]
        cells = (" / ".join("none" if m is None else f"{m:+.1f}" for m in pair) for pair in pairs)
        lines.append(f"{point.setting:16}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join([*lines, "(none: that curve has no points on both sides)"])


def margin(point: Point, curve: Sequence[Point], cost: str) -> float | None:
    """Return the mIoU of a point above a curve at the same ``cost`` (an attribute); None beyond the curve's ends."""
    costs, values = zip(*sorted((getattr(other, cost), other.miou) for other in curve), strict=True)
    own = getattr(point, cost)
    if not costs[0] <= own <= costs[-1]:
        return None
    return point.miou - float(np.interp(own, costs, values))


def curve_of(points: Sequence[Point], method: str) -> list[Point]:
    """Return the points of a method, from much merging to little."""
    return sorted((point for point in points if point.method == method), key=lambda point: point.gflops)


def write(path: Path, points: Sequence[Point]) -> None:
    """Write the points as a CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        for point in points:
            numbers = {name: round(value, 4) for name, value in asdict(point).items() if isinstance(value, float)}
            writer.writerow({**asdict(point), **numbers})
