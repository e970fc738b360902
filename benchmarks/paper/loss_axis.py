"""Scale an axis of losses against the unpatched model: small ones apart, large ones within sight."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Transform

LINEAR = 1  # point from the unpatched model, up to which the scale is linear
SCALE = f"Vertical scales: distance from the unpatched model, linear to {LINEAR} point, logarithmic beyond (shaded)."
SHADE = "0.95"
STEPS = (-100, -50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5)


def scale_losses(axes: Axes, values: Iterable[float], unpatched: float) -> None:
    """Scale the vertical axis for values against the unpatched model, which lie on it as differences in points.

    Args:
        values: the differences that the axis shall show; NaN is passed over.
        unpatched: what a difference of 0 is: its ticks have such figures; with 0 they have signs.
    """
    axes.set_yscale("symlog", base=10, linthresh=LINEAR, linscale=1)
    shown = [value for value in values if not math.isnan(value)]
    transform: Transform = axes.yaxis.get_transform()
    low, high = transform.transform([min(*shown, -LINEAR), max(*shown, 0)])
    margin = 0.06 * (high - low)
    axes.set_ylim(*transform.inverted().transform([low - margin, high + margin]))
    bottom, top = axes.get_ylim()
    axes.axhspan(bottom, -LINEAR, color=SHADE, zorder=0)  # the break between the two scales
    if top > LINEAR:
        axes.axhspan(LINEAR, top, color=SHADE, zorder=0)
    steps = [step for step in STEPS if bottom <= step <= top]
    axes.set_yticks(steps, [label(step, unpatched) for step in steps])
    axes.yaxis.set_minor_locator(NullLocator())


def scale_linearly(axes: Axes, unpatched: float) -> None:
    """Scale the vertical axis from 0 to what the unpatched model has."""
    axes.set_ylim(-1.05 * unpatched, 0.05 * unpatched)
    steps = [-unpatched * part / 5 for part in range(6)]
    axes.set_yticks(steps, [label(step, unpatched) for step in steps])


def label(step: float, unpatched: float) -> str:
    """Return the figure at a distance from the unpatched model's."""
    text = f"{unpatched + step:g}" if unpatched or not step else f"{step:+g}"
    return text.replace("-", "−")
