"""Draw the trade-off: mIoU against GFLOPs and against time, and agreement against GFLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.scale import SymmetricalLogTransform

from .tradeoff_points import METHODS, Point, curve_of

# Colours that colour-blind people tell apart (Okabe and Ito), a marker each, and what the legend adds.
STYLES = dict(
    zip(
        METHODS,
        (
            ("#999999", "s", "in one layer"),
            ("#0072B2", "^", "r tokens in each layer"),
            ("#D55E00", "v", "layers 1 and 5, plain attention"),
            ("#009E73", "o", "of this library"),
            ("#CC79A7", "D", "to this model"),
        ),
        strict=True,
    )
)
# The labels of a curve's ends stand before its first point and behind its last: alignment, and shift in points.
SIDES = (("right", -8), ("left", 8))
AXIS_LABELS = {
    "miou": "mIoU against unpatched (points; scale logarithmic beyond ±1)",
    "agreement": "pixels predicted as unpatched (%; scale logarithmic below 99)",
}


def draw(points: Sequence[Point], title: str, machine: str) -> Figure:
    """Return a figure of three panels."""
    base = points[0]
    points = [replace(point, miou=point.miou - base.miou) for point in points]
    figure = Figure(figsize=(16, 6.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (x, y) in zip(panels, [("gflops", "miou"), ("time", "miou"), ("gflops", "agreement")], strict=True):
        draw_panel(axes, points, x, y)
    panels[1].set_xlabel(f"time of a forward pass (unpatched = 1; {machine})")
    handles, labels = panels[0].get_legend_handles_labels()
    unpatched = f"unpatched: {base.miou:.1f} % mIoU, {base.gflops:.1f} GFLOPs"
    figure.legend(handles, [*labels[:-1], unpatched], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title}\nNothing trained; one image at a time. Higher and further left is better.")
    return figure


def draw_panel(axes: Axes, points: Sequence[Point], x: str, y: str) -> None:
    """Draw a curve for each method, and lines for the unpatched model.

    Args:
        x, y: attributes of the points.
    """
    base = points[0]
    for method, (colour, marker, legend) in STYLES.items():
        if curve := curve_of(points, method):
            xs, ys = ([getattr(point, name) for point in curve] for name in (x, y))
            axes.plot(
                xs, ys, color=colour, marker=marker, markeredgecolor="white", markersize=9, label=f"{method}, {legend}"
            )
            for point, (side, shift) in zip((curve[0], curve[-1]), SIDES, strict=True):
                axes.annotate(
                    point.setting,
                    (getattr(point, x), getattr(point, y)),
                    xytext=(shift, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    color=colour,
                    fontsize=9,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )
    least, most = (extreme(getattr(point, x) for point in points) for extreme in (min, max))
    axes.set_xlim(least - 0.2 * (most - least), most + 0.06 * (most - least))
    axes.axvline(getattr(base, x), color="black", linestyle="--", linewidth=1.2)
    axes.axhline(getattr(base, y), color="black", linestyle="--", linewidth=1.2, label=base.method)
    axes.set_xlabel("GFLOPs an image")
    axes.set_ylabel(AXIS_LABELS[y])
    scale_around(axes, getattr(base, y), [getattr(point, y) for point in points], signed=y == "miou")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def scale_around(axes: Axes, centre: float, values: Sequence[float], signed: bool) -> None:
    """Make the axis linear within 1 of ``centre``, and logarithmic in the distance beyond."""
    scale = SymmetricalLogTransform(base=10, linthresh=1, linscale=1)
    axes.set_yscale(
        "function",
        functions=(
            lambda values: scale.transform(values - centre),
            lambda values: scale.inverted().transform(values) + centre,
        ),
    )
    low = scale.transform(np.array([min(*values, centre - 1) - centre]))[0] - 0.1
    high = scale.transform(np.array([max(values) - centre]))[0] + 0.1
    limits = scale.inverted().transform(np.array([low, high])) + centre
    steps = [step for step in (-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2) if step + centre <= max(values) + 0.1]
    texts = [f"{centre + step:+g}".replace("+0", "0") if signed else f"{centre + step:g}" for step in steps]
    axes.set_yticks([centre + step for step in steps], [text.replace("-", "−") for text in texts], minor=False)
    axes.set_ylim(*limits)
