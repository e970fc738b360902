"""Figures of panels, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..deprecated import model_first
from ..handle import Algm
from ..report.text import patches_per_layer
from ..trunks import handle_of
from .groups import CAPTION, size_colours
from .layout import SMALL, TITLE, Notes, new_sheet
from .paint import NO_CLASS, Array, distinct_colours
from .panels import AFTER, BEFORE, DIFFERENCE, panels
from .text import shortened, text_width
from .view import Predict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = ("patches in a group:", size_colours())
NO_WINDOW = "0.88"  # light grey, for tokens that are in no window
BAR = "#3f90da"


@model_first
def visualize(
    model: nn.Module,
    image: Any,
    predict: Predict | None = None,
    *,
    classes: Sequence[str] = (),
    palette: Any = None,
) -> Figure:
    """Draw the panels of one image (as the supplement's Fig. 4 to 9) and the patch tokens that each layer leaves.

    Above stands what merging saves, in the words of ``print(model.algm)``.

    Args:
        model, image, predict, palette: as for ``algm_patch.viz.panels``.
        classes: names for a legend.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError, TypeError: as ``algm_patch.viz.panels``.
    """
    colours = distinct_colours(len(classes)) if palette is None and classes else palette
    shown = panels(model, image, predict, colours)
    handle = handle_of(model)
    named = named_colours(shown, classes, colours)
    notes = Notes(handle.saved(), [SIZES, *([("classes:", named)] if named else [])], CAPTION)
    columns = columns_for(len(shown), 3 if predict else 0)
    figure, axes = new_sheet(len(shown), shown["image"].shape, columns, notes, chart=True, feet=True)
    limits = limits_of(shown)
    for each, (title, panel) in zip(axes, shown.items(), strict=False):
        draw_panel(each, panel, title, limits.get(title))
    draw_tokens(axes[-1], handle)
    return figure


def columns_for(count: int, together: int) -> int:
    """Return in how many columns ``count`` panels stand, so that the last ones, which belong together, share a row."""
    return next((columns for columns in (4, 3, 5, 6, 7) if (count - together) % columns + together <= columns), 4)


def named_colours(shown: Mapping[str, Array], classes: Sequence[str], palette: Any) -> list[tuple[str, Array]]:
    """Return the names of classes with their colours, and of pixels without a class if the panels have some."""
    named = list(zip(classes, np.asarray(palette), strict=False)) if classes else []
    if len(classes) > len(named):
        raise ValueError(f"{len(classes)} classes, but the palette has {len(named)} colours")
    predicted = [shown[title] for title in (BEFORE, AFTER) if title in shown and shown[title].ndim == 3]
    if any((panel == NO_CLASS).all(-1).any() for panel in predicted):
        named.append(("no class", np.array(NO_CLASS)))
    return named


def limits_of(shown: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Return the ends of the scales by title, of predicted values: one for both, and one as long for the difference."""
    values = [shown[title] for title in (BEFORE, AFTER) if title in shown and shown[title].ndim == 2]
    if not values:
        return {}
    least, most = float(np.min(values)), float(np.max(values))
    difference = next(title for title in shown if title.startswith(DIFFERENCE))
    return {BEFORE: (least, most), AFTER: (least, most), difference: (0.0, most - least)}


def draw_panel(axes: Axes, panel: Array, title: str = "", limits: tuple[float, float] | None = None) -> None:
    """Draw colours [H, W, 3] as they are, or values [H, W] as a map with its scale below it.

    Args:
        limits: the ends of the scale. Default: the least and the largest value.
    """
    from matplotlib import colormaps

    least, most = limits or (None, None)
    axes.set_axis_off()
    draw_title(axes, title)
    drawn = axes.imshow(panel, cmap=colormaps["viridis"].with_extremes(bad=NO_WINDOW), vmin=least, vmax=most)
    if panel.ndim == 2:
        draw_scale(axes, drawn)


def draw_title(axes: Axes, title: str) -> None:
    """Write a title in two lines, each of which fits above the axes."""
    width = size_of(axes)[0] * axes.get_position(original=True).width
    lines = [shortened(line, width, TITLE) for line in title.replace(": ", "\n", 1).split("\n")]
    axes.set_title("\n".join(lines), fontsize=TITLE, parse_math=False)


def size_of(axes: Any) -> tuple[float, float]:
    """Return width and height of the figure around axes, in inches."""
    wide, high = axes.figure.get_size_inches()
    return float(wide), float(high)


def draw_scale(axes: Axes, drawn: Any) -> None:
    """Draw the scale of a map below it, labelled at its ends and between."""
    from matplotlib.ticker import MaxNLocator

    box, inches = axes.get_position(original=True), size_of(axes)[1]
    scale = axes.figure.add_axes((box.x0 + box.width * 0.2, box.y0 - 0.12 / inches, box.width * 0.6, 0.07 / inches))
    axes.figure.colorbar(drawn, cax=scale, orientation="horizontal", ticks=MaxNLocator(3))
    scale.tick_params(labelsize=SMALL - 1, length=2, pad=1)


def draw_tokens(axes: Axes, handle: Algm) -> None:
    """Draw how many patch tokens each layer of the last forward pass left, before grey bars of all patches."""
    counts = patches_per_layer(handle.last_pass)
    height, width = handle.last_pass.grid
    layers, whole = range(1, len(counts) + 1), height * width
    axes.bar(layers, [whole] * len(counts), width=0.9, color="0.88")
    axes.bar(layers, counts, width=0.9, color=BAR)
    draw_title(axes, f"patch tokens after each layer: of {whole}")
    axes.set_xlim(0.4, len(counts) + 0.6)
    axes.set_ylim(0, whole * 1.02)
    axes.set_yticks([])
    inches = size_of(axes)[0] * axes.get_position(original=True).width
    bar = inches / (len(counts) + 0.2)
    every = int(text_width("00", SMALL) * 1.3 / bar) + 1
    axes.set_xticks(layers[::every])
    axes.tick_params(labelsize=SMALL, length=0, pad=1)
    axes.set_xlabel("layer", fontsize=SMALL, labelpad=1)
    axes.spines[["top", "left", "right"]].set_visible(False)
    label_bars(axes, counts, bar)


def label_bars(axes: Axes, counts: Sequence[int], bar: float) -> None:
    """Write counts into bars where they change, upright if they are many, and as many as fit.

    Args:
        bar: width of a bar in inches.
    """
    changes = [i for i, count in enumerate(counts) if i == 0 or count != counts[i - 1]]
    wide = text_width(str(max(counts)), SMALL) * 1.15
    gaps = [after - before for before, after in zip(changes, [*changes[1:], len(counts)], strict=True)]
    upright = min(gaps) * bar < wide
    needed = (1.3 * SMALL / 72 if upright else wide) / bar
    last = -needed
    for i in changes:
        if i - last >= needed:
            axes.text(
                i + 1 if upright else i + 0.6,
                0.04 * axes.get_ylim()[1],
                f"{counts[i]}",
                fontsize=SMALL,
                color="white",
                ha="center" if upright else "left",
                va="bottom",
                rotation=90 if upright else 0,
            )
            last = i
