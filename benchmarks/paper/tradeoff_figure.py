"""Draw the trade-off: pixels, classes and mIoU against GFLOPs, and mIoU against time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.bootstrap import Estimate
from .loss_axis import SCALE, scale_losses
from .tradeoff_points import METHODS, Point, curve_of

# Colours that colour-blind people tell apart (Okabe and Ito; Tol), a marker each, and what the legend adds.
STYLES = dict(
    zip(
        METHODS,
        (
            ("#000000", "P", "nothing merged"),
            ("#999999", "s", "in one layer"),
            ("#0072B2", "^", "tokens in each layer"),
            ("#56B4E9", "<", "of the tokens in each layer"),
            ("#E69F00", ">", "of the tokens in each layer"),
            ("#882255", "h", "local clusters behind a layer"),
            ("#999933", "p", "density peaks behind a layer"),
            ("#332288", "X", "mutual pairs"),
            ("#D55E00", "v", "layers 1 and 5, plain attention"),
            ("#009E73", "o", "of this library"),
            ("#CC79A7", "D", "to this model"),
        ),
        strict=True,
    )
)
# What is drawn: attribute of the points, its value for the unpatched model, title.
PIXELS = "agreement", 100.0, "pixels predicted as unpatched (%)"
CLASSES = "classes", 100.0, "mean IoU with unpatched over the classes (%)"
MIOU = "difference", 0.0, "mIoU against unpatched (points)"


def draw(points: Sequence[Point], title: str, machine: str) -> Figure:
    """Return a figure of four panels."""
    figure = Figure(figsize=(14, 11), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, x, measure in zip(
        panels, ("gflops", "gflops", "gflops", "time"), (PIXELS, CLASSES, MIOU, MIOU), strict=True
    ):
        draw_panel(axes, points, x, *measure)
        axes.set_xlabel("GFLOPs of the ViT, an image")
    axes.set_xlabel(f"time of a forward pass (unpatched = 1; {machine})")
    handles, labels = axes.get_legend_handles_labels()
    unpatched = f"unpatched: {points[0].miou:.1f} % mIoU, {points[0].gflops:.1f} GFLOPs"
    figure.legend(handles, [*labels[:-1], unpatched], loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"{title}\nNothing trained; one image at a time. Higher and further left is better. {SCALE}\n"
        "Bars: intervals of 95 % by the bootstrap over images.",
        fontsize=11,
    )
    return figure


def draw_panel(axes: Axes, points: Sequence[Point], x: str, y: str, unpatched: float, title: str) -> None:
    """Draw a curve for each method, and lines for the unpatched model, which comes first.

    Args:
        x, y: attributes of the points.
        unpatched, title: see ``PIXELS``.
    """
    heights: list[float] = []
    for method in dict.fromkeys(point.method for point in points[1:]):
        curve = curve_of(points, method)
        estimates: list[Estimate] = [getattr(point, y) for point in curve]
        draw_curve(axes, [getattr(point, x) for point in curve], estimates, unpatched, method, legend(curve))
        heights += [end - unpatched for one in estimates for end in (one.value, one.low, one.high)]
    least, most = (extreme(getattr(point, x) for point in points) for extreme in (min, max))
    axes.set_xlim(least - 0.04 * (most - least), most + 0.04 * (most - least))
    axes.axvline(getattr(points[0], x), color="black", linestyle="--", linewidth=1)
    axes.axhline(0, color="black", linestyle="--", linewidth=1, label="unpatched")
    axes.set_title(title, fontsize=11, loc="left")
    scale_losses(axes, heights, unpatched)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axes: Axes, xs: Sequence[float], estimates: Sequence[Estimate], unpatched: float, method: str, text: str
) -> None:
    """Draw a method's estimates as differences to the unpatched model, with bars for the intervals."""
    colour, marker, _ = STYLES[method]
    values, lows, highs = ([end - unpatched for end in ends] for ends in zip(*map(astuple, estimates), strict=True))
    axes.vlines(xs, lows, highs, colour, alpha=0.45)
    style: dict[str, Any] = {"color": colour, "marker": marker, "markeredgecolor": "white", "markersize": 8}
    axes.plot(xs, values, label=text, **style)


def legend(curve: Sequence[Point]) -> str:
    """Return a curve's entry: method, settings from the most merging to the least, and what it is."""
    ends = dict.fromkeys(point.setting for point in (curve[0], curve[-1]))
    return f"{curve[0].method} ({' to '.join(ends)}), {STYLES[curve[0].method][2]}"
