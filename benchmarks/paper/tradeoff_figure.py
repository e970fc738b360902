"""Draw the trade-off: pixels, classes and mIoU against GFLOPs, and mIoU against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from operator import attrgetter
from typing import Any, Generic

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .loss_axis import SCALE, scale_linearly, scale_losses
from .tradeoff_points import METHODS, AnyPoint, Placed, Point, curve_of

# Colours that colour-blind people tell apart (Okabe and Ito; Tol), a marker each, and what the legend adds.
STYLES = dict(
    zip(
        METHODS,
        (
            ("#000000", "P", "nothing merged"),
            ("#999999", "s", "in one layer"),
            ("#0072B2", "^", "a number of tokens in each layer"),
            ("#56B4E9", "<", "a share of the tokens in each layer"),
            ("#E69F00", ">", "a share of the tokens in each layer"),
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
Ends = tuple[float, float, float]


@dataclass(frozen=True)
class Panel(Generic[AnyPoint]):
    """Say what a panel shows.

    Attributes:
        title: heading.
        across: where a point stands from left to right.
        ends: how high it stands, and the lower and the upper end of its bar.
        unpatched: how high the unpatched model stands: 0 for differences, 100 for percent.
        label: label of the axis from left to right.
        linear: the axis from bottom to top is linear from 0, for figures that are far from the unpatched model's.
    """

    title: str
    across: Callable[[AnyPoint], float]
    ends: Callable[[AnyPoint], Ends]
    unpatched: float
    label: str
    linear: bool = False


def panels_of(machine: str) -> list[Panel[Point]]:
    """Return the panels of the trade-off."""
    gflops, cost = attrgetter("gflops"), "GFLOPs of the ViT, an image"
    time = f"time of a forward pass (unpatched = 1; {machine})"
    miou = "mIoU against unpatched (points)"
    return [
        Panel("pixels predicted as unpatched (%)", gflops, lambda point: astuple(point.agreement), 100, cost),
        Panel("mean IoU with unpatched over the classes (%)", gflops, lambda point: astuple(point.classes), 100, cost),
        Panel(miou, gflops, lambda point: astuple(point.difference), 0, cost),
        Panel(miou, attrgetter("time"), lambda point: astuple(point.difference), 0, time),
    ]


def draw(points: Sequence[Point], title: str, machine: str) -> Figure:
    """Return a figure of four panels."""
    figure = Figure(figsize=(11, 10), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 2).flat, panels_of(machine), strict=True):
        draw_panel(axes, points, panel)
    handles, methods = axes.get_legend_handles_labels()
    texts = [legend(curve_of(points, method)) for method in methods[:-1]]
    unpatched = f"unpatched: {points[0].miou:.1f} % mIoU, {points[0].gflops:.1f} GFLOPs"
    figure.legend(handles, [*texts, unpatched], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(
        f"{title}\nNothing trained; one image at a time. Higher and further left is better.\n"
        f"{SCALE}\nBars: intervals of 95 % by the bootstrap over images.",
        fontsize=10,
    )
    return figure


def draw_panel(axes: Axes, points: Sequence[AnyPoint], panel: Panel[AnyPoint]) -> None:
    """Draw a curve for each method, and lines for the unpatched model, which comes first."""
    heights: list[float] = []
    for method in dict.fromkeys(point.method for point in points[1:]):
        curve = sorted(curve_of(points, method), key=panel.across)
        ends = [tuple(end - panel.unpatched for end in panel.ends(point)) for point in curve]
        values, lows, highs = zip(*ends, strict=True)
        across = [panel.across(point) for point in curve]
        colour, marker, _ = STYLES[method]
        own = method.startswith("ALGM")  # before the others
        axes.vlines(across, lows, highs, colour, alpha=0.5 if own else 0.3, linewidth=1.5 if own else 1)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markeredgecolor": "white", "label": method}
        style |= {"markersize": 9, "linewidth": 2, "zorder": 3} if own else {"markersize": 7, "linewidth": 1}
        axes.plot(across, values, **style)
        heights += [*values, *lows, *highs]
    least, most = (extreme(map(panel.across, points)) for extreme in (min, max))
    axes.set_xlim(least - 0.04 * (most - least), most + 0.04 * (most - least))
    axes.axvline(panel.across(points[0]), color="black", linestyle="--", linewidth=1)
    axes.axhline(0, color="black", linestyle="--", linewidth=1, label="unpatched")
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel(panel.label)
    if panel.linear:
        scale_linearly(axes, panel.unpatched)
    else:
        scale_losses(axes, heights, panel.unpatched)
    axes.grid(color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(curve: Sequence[Placed]) -> str:
    """Return a curve's entry: method, settings from the most merging to the least, and what it is."""
    ends = dict.fromkeys(point.setting for point in (curve[0], curve[-1]))
    return f"{curve[0].method} ({' to '.join(ends)}), {STYLES[curve[0].method][2]}"
