"""Keep the points of a trade-off: table, margins, file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ..evaluation.bootstrap import Estimate

METHODS = (
    "lower resolution",
    "2×2 pooling",
    "ToMe",
    "ToMe, ratio",
    "PiToMe",
    "ELViT",
    "AiluRus",
    "MPM",
    "ALGM as published",
    "ALGM defaults",
    "ALGM tuned",
)
TUNED = METHODS[-1]


class Placed(Protocol):
    """Name the method and the setting of a point, and what it costs."""

    @property
    def method(self) -> str:
        """Return the name of the curve."""

    @property
    def setting(self) -> str:
        """Return the label of the point."""

    @property
    def gflops(self) -> float:
        """Return the GFLOPs of the ViT, for an image."""


AnyPoint = TypeVar("AnyPoint", bound=Placed)


@dataclass(frozen=True)
class Point:
    """Hold what a method gives and takes at one setting.

    Attributes:
        method, setting: as in ``Method``.
        miou: percent.
        gflops: of the ViT, for an image.
        time: time of a forward pass divided by the unpatched model's.
        difference: mIoU against the unpatched model's, in points.
        agreement: percent of the pixels that are predicted as by the unpatched model.
        classes: mean IoU with the unpatched model's predictions, in percent.
    """

    method: str
    setting: str
    miou: float
    gflops: float
    time: float
    difference: Estimate
    agreement: Estimate
    classes: Estimate


def table(points: Sequence[Point]) -> str:
    """Return the points as a table, intervals of 95 % in brackets."""
    width = 2 + max(len(f"{point.method} {point.setting}") for point in points)
    head = f"{'':{width}}{'mIoU':>6}{'against unpatched':>25}{'pixels agree':>25}{'classes agree':>25}"
    lines = [f"{head}{'GFLOPs':>8}{'fewer':>7}{'time':>6}"]
    for point in points:
        cells = f"{f'{point.method} {point.setting}':{width}}{point.miou:6.1f}"
        if point is points[0]:
            cells += " " * 75
        else:
            cells += f"{point.difference.value:+8.1f}{f'({point.difference.signed_interval})':>17}"
            for share in (point.agreement, point.classes):
                cells += f"{share.value:8.1f}{f'({share.interval})':>17}"
        lines.append(f"{cells}{point.gflops:8.1f}{1 - point.gflops / points[0].gflops:7.0%}{point.time:6.2f}")
    return "\n".join([*lines, "In brackets: the interval of 95 % by the bootstrap over images"])


# Attributes of a point: what it keeps, to be compared with a curve at the same cost.
KEPT = ("agreement", "classes", "difference")


def margins(points: Sequence[Point]) -> str:
    """Return how far tuned ALGM is above each other curve at the same cost; empty if nothing is tuned."""
    tuned = curve_of(points, TUNED)
    others = [method for method in METHODS if method != TUNED and curve_of(points, method)]
    if not tuned or not others:
        return ""
    width = 2 + max(len(point.setting) for point in tuned)
    lines = []
    for cost, title in (("gflops", "GFLOPs"), ("time", "time")):
        lines.append(
            f"ALGM tuned minus each curve, interpolated at the same {title}: pixels / classes / mIoU, in points"
        )
        lines.append(f"{'':{width}}" + "".join(f"{method:>22}" for method in others))
        for point in tuned:
            cells = (margin_cell(point, curve_of(points, method), cost) for method in others)
            lines.append(f"{point.setting:{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join([*lines, "(none: that curve has no points on both sides)"])


def margin_cell(point: Point, curve: Sequence[Point], cost: str) -> str:
    """Return the margins of a point above a curve as text."""
    found = [margin(point, curve, cost, kept) for kept in KEPT]
    return "none" if found[0] is None else " / ".join(f"{one:+.1f}" for one in found)


def margin(point: Point, curve: Sequence[Point], cost: str, kept: str) -> float | None:
    """Return how far a point is above a curve at the same cost; None beyond the curve's ends.

    Args:
        cost, kept: attributes of the points: what is the same, and the estimate that is compared.
    """
    costs, values = zip(*sorted((getattr(other, cost), getattr(other, kept).value) for other in curve), strict=True)
    own = getattr(point, cost)
    if not costs[0] <= own <= costs[-1]:
        return None
    return float(getattr(point, kept).value - np.interp(own, costs, values))


def curve_of(points: Sequence[AnyPoint], method: str) -> list[AnyPoint]:
    """Return the points of a method, from much merging to little."""
    return sorted((point for point in points if point.method == method), key=lambda point: point.gflops)


def write(path: Path, points: Sequence[Point]) -> None:
    """Write the points as a CSV; of an estimate the value, and the ends of its interval as NAME_low and NAME_high."""
    rows = [row_of(point) for point in points]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def row_of(point: Point) -> dict[str, str | float]:
    """Return a point as the columns of a CSV."""
    row: dict[str, str | float] = {}
    for field in fields(point):
        value = getattr(point, field.name)
        if isinstance(value, Estimate):
            row |= {field.name: round(value.value, 4)}
            row |= {f"{field.name}_low": round(value.low, 4), f"{field.name}_high": round(value.high, 4)}
        else:
            row[field.name] = round(value, 4) if isinstance(value, float) else value
    return row


def read(path: Path) -> list[Point]:
    """Return the points of a CSV that ``write`` wrote.

    Raises:
        ValueError: if it lacks a column.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [point_of(row) for row in rows]
    except KeyError as error:
        raise ValueError(f"{path} has no column {error}: write it anew by benchmarks.paper.tradeoff") from error


def point_of(row: dict[str, str]) -> Point:
    """Return the point of a CSV's row."""

    def estimate(name: str) -> Estimate:
        return Estimate(float(row[name]), float(row[f"{name}_low"]), float(row[f"{name}_high"]))

    return Point(
        row["method"],
        row["setting"],
        float(row["miou"]),
        float(row["gflops"]),
        float(row["time"]),
        estimate("difference"),
        estimate("agreement"),
        estimate("classes"),
    )
