"""Keep what methods lose on saliency and features: table, file, picture."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .loss_axis import SCALE
from .tradeoff_figure import STYLES, Panel, draw_panel
from .tradeoff_points import Placed, Point

SHARE = "GFLOPs of the ViT (% of unpatched)"
# The measures of a point, and what the table and the picture call them.
MEASURES = {
    "correlation": ("saliency correlates", "saliency: correlation with unpatched (%)"),
    "same_side": ("saliency same side", "saliency: pixels on the same side of 0.5 (%)"),
    "cosine": ("tokens' cosine", "features: mean cosine of the tokens (%)"),
    "retrieved": ("patches find the same", "features: patches that find the same neighbour (%)"),
}


@dataclass(frozen=True)
class Score:
    """Hold a measure in percent: the mean over the images, and that of the worst image, with its name."""

    mean: float
    worst: float
    image: str

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Score:
        """Return the score of images by name, each in [0, 1]."""
        image = min(values, key=values.__getitem__)
        return cls(100 * statistics.fmean(values.values()), 100 * values[image], image)


@dataclass(frozen=True)
class TaskPoint:
    """Hold what a method gives and takes at one setting.

    Attributes:
        method, setting: as in ``Method``.
        gflops: of the ViT, for an image.
        correlation, same_side, cosine, retrieved: as in ``task_scores``.
    """

    method: str
    setting: str
    gflops: float
    correlation: Score
    same_side: Score
    cosine: Score
    retrieved: Score


def table(points: Sequence[TaskPoint]) -> str:
    """Return the points as a table: of each measure the mean over images and the worst image, in percent."""
    width = 2 + max(len(f"{point.method} {point.setting}") for point in points)
    titles = "".join(f"{title:>24}" for title, _ in MEASURES.values())
    lines = [f"{'':{width}}{'GFLOPs':>7}{'fewer':>7}{titles}"]
    for point in points:
        fewer = 1 - point.gflops / points[0].gflops
        scores: list[Score] = [getattr(point, name) for name in MEASURES]
        cells = (f"{f'{score.mean:.2f} ({score.worst:.2f})':>24}" for score in scores)
        lines.append(f"{f'{point.method} {point.setting}':{width}}{point.gflops:7.1f}{fewer:7.0%}{''.join(cells)}")
    return "\n".join([*lines, "Percent, mean over the images, and in brackets the worst image"])


def write(path: Path, points: Sequence[TaskPoint]) -> None:
    """Write the points as a CSV; the worst image of a measure as NAME_worst and NAME_image."""
    rows = []
    for point in points:
        row: dict[str, Any] = asdict(point)
        for name in MEASURES:
            score = row.pop(name)
            row |= {name: round(score["mean"], 4), f"{name}_worst": round(score["worst"], 4)}
            row[f"{name}_image"] = score["image"]
        rows.append(row | {"gflops": round(point.gflops, 4)})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def draw(points: Sequence[TaskPoint], segmented: Sequence[Point], title: str) -> Figure:
    """Return a figure with a column for each task; the first, if it was measured, for segmentation."""
    columns = 2 + bool(segmented)
    figure = Figure(figsize=(7 * columns, 11), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for axes, name in zip(grid[:, -2:].T.flat, MEASURES, strict=True):
        draw_panel(axes, points, task_panel(name, points[0]))
    if segmented:
        for axes, panel in zip(grid[:, 0], segmentation_panels(segmented[0]), strict=True):
            draw_panel(axes, segmented, panel)
    entries: dict[str, Any] = {}
    for axes in grid.flat:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    unpatched = entries.pop("unpatched")
    texts = [*(f"{method}, {STYLES[method][2]}" for method in entries), "unpatched"]
    figure.legend([*entries.values(), unpatched], texts, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"{title}\nNothing trained. Higher and further left is better. {SCALE[:-1]} (of neighbours: linear).\n"
        f"Bars: down to the worst image{'; of segmentation, intervals of 95 %' if segmented else ''}.",
        fontsize=11,
    )
    return figure


def share_of(base: Placed) -> Any:
    """Return a function that gives the GFLOPs of a point in percent of the first one's."""
    return lambda point: 100 * point.gflops / base.gflops


def task_panel(name: str, base: TaskPoint) -> Panel[TaskPoint]:
    """Return the panel of a measure."""

    def ends(point: TaskPoint) -> tuple[float, float, float]:
        score: Score = getattr(point, name)
        return score.mean, score.worst, score.mean

    return Panel(MEASURES[name][1], share_of(base), ends, 100, SHARE, linear=name == "retrieved")


def segmentation_panels(base: Point) -> list[Panel[Point]]:
    """Return the panels of pixels and classes."""
    share = share_of(base)
    return [
        Panel("segmentation: pixels as unpatched (%)", share, lambda point: astuple(point.agreement), 100, SHARE),
        Panel("segmentation: mean IoU with unpatched (%)", share, lambda point: astuple(point.classes), 100, SHARE),
    ]
