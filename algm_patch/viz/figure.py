"""Figures of panels, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from ..deprecated import model_first
from ..handle import Algm
from ..images.named import named_images
from ..trunks import handle_of
from .paint import NO_CLASS, Array, distinct_colours
from .panels import panels
from .view import Predict, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # of a figure in inches: a notebook shows it without shrinking the text much
TITLE = 9  # points: of four panels in a row, titles do not touch


@model_first
def visualize(
    model: nn.Module,
    image: Any,
    predict: Predict | None = None,
    *,
    classes: Sequence[str] = (),
    palette: Any = None,
) -> Figure:
    """Draw the panels of one image (as the supplement's Fig. 4 to 9) and the number of tokens after each layer.

    Args:
        model, image, predict, palette: as for ``algm_patch.viz.panels``.
        classes: names for a legend.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError, TypeError: as ``algm_patch.viz.panels``.
    """
    colours = distinct_colours(len(classes)) if palette is None and classes else palette
    shown = panels(model, image, predict, colours)
    count = len(shown) + 1
    columns = min(3, 4, key=lambda columns: -count % columns)  # whichever leaves fewer cells empty
    figure, axes = grid_of_axes(count, shown["image"].shape, columns)
    draw_panels(axes, shown.items())
    draw_tokens(axes[len(shown)], handle_of(model))
    high, wide, _ = shown["image"].shape
    axes[len(shown)].set_box_aspect(high / wide)
    named = list(zip(classes, np.asarray(colours), strict=False)) if classes else []
    if len(classes) > len(named):
        raise ValueError(f"{len(classes)} classes, but the palette has {len(named)} colours")
    predicted = [panel for title, panel in shown.items() if title.startswith("prediction, ") and panel.ndim == 3]
    if any((panel == NO_CLASS).all(-1).any() for panel in predicted):
        named.append(("no class", np.array(NO_CLASS)))
    if named:
        draw_legend(figure, named)
    return figure


def draw_sheet(shown: Sequence[tuple[str, Array]], columns: int) -> Figure:
    """Draw titles and panels in rows of ``columns``; several titles may be the same."""
    lines = 1 + max(title.count("\n") for title, _ in shown)
    figure, axes = grid_of_axes(len(shown), shown[0][1].shape, columns, lines)
    draw_panels(axes, shown)
    return figure


def draw_panels(axes: Sequence[Axes], shown: Iterable[tuple[str, Array]]) -> None:
    """Draw titles and panels, each pair on axes of its own."""
    for axis, (title, panel) in zip(axes, shown, strict=False):
        draw_panel(axis, panel, title)


def draw_panel(axes: Axes, panel: Array, title: str = "") -> None:
    """Draw colours [H, W, 3] as they are, or values [H, W] as a map with its scale in a corner."""
    axes.set_axis_off()
    axes.set_title(title, fontsize=TITLE)
    drawn = axes.imshow(panel, interpolation="nearest", cmap="viridis")
    if panel.ndim == 2:
        draw_scale(axes, drawn)


def draw_scale(axes: Axes, drawn: Any) -> None:
    """Draw the scale of a map in its corner, in white with black edges, which can be read on every colour."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    scale = axes.inset_axes((0.04, 0.1, 0.42, 0.035))
    axes.figure.colorbar(drawn, cax=scale, orientation="horizontal", ticks=MaxNLocator(3))
    scale.tick_params(colors="white", labelsize="small", length=2)
    for label in scale.get_xticklabels():
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])


def draw_tokens(axes: Axes, handle: Algm) -> None:
    """Draw how many tokens each layer of the last forward pass left, before grey bars of all tokens."""
    from matplotlib.ticker import MaxNLocator

    counts = handle.tokens_per_layer
    height, width = handle.last_pass.grid
    layers = range(1, len(counts) + 1)
    whole = handle.last_pass.num_prefix_tokens + height * width
    axes.bar(layers, [whole] * len(counts), width=0.9, color="0.88")
    axes.bar(layers, counts, width=0.9, color="#3f90da")
    axes.set_title("tokens after each layer", fontsize=TITLE)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, whole * 1.12)
    axes.yaxis.tick_right()  # on the left, its numbers would push the panels apart
    axes.spines[["top", "left"]].set_visible(False)
    for layer, count in zip(layers, counts, strict=True):
        if layer == 1 or count != counts[layer - 2]:
            axes.text(layer, count, f"{count}", ha="center", va="bottom", fontsize="small")


def draw_legend(figure: Figure, named: Sequence[tuple[str, Array]]) -> None:
    """Draw a legend below a figure.

    Args:
        named: names with their colours [3], from 0 to 255.
    """
    from matplotlib.patches import Patch

    handles = [Patch(color=tuple(colour / 255), label=name) for name, colour in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(named), 7), frameon=False)


@model_first
def contact_sheet(model: nn.Module, images: Any, columns: int = 4) -> Figure:
    """Draw the groups that the last layer leaves of many images, with their names and numbers of tokens.

    Args:
        model: patched.
        images: a folder, whose images are taken by the numbers in their names, 2 before 10; or an iterable of images
            as for ``algm_patch.viz.panels``, or of paths of images.
        columns: images in a row.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there is no image; or as ``algm_patch.viz.panels``.
        OSError: if a file cannot be read as an image.
    """
    cells = []
    for name, image in named_images(images):
        groups, count = look(model, image).last_groups
        cells.append((f"{name}\n{count}", groups))
    if not cells:
        raise ValueError("contact_sheet got no images. Give a folder with images in it, or a list of images")
    return draw_sheet(cells, columns)


def grid_of_axes(count: int, shape: tuple[int, ...], columns: int, lines: int = 1) -> tuple[Figure, Any]:
    """Return a figure with axes for panels.

    Args:
        count: the number of panels.
        shape: of a panel: height and width in pixels come first.
        columns: panels in a row.
        lines: of a title.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    side = WIDTH / columns
    figure = new_figure((WIDTH, rows * (side * shape[0] / shape[1] + 0.15 + 0.2 * lines)), "constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes


def new_figure(size: tuple[float, float], layout: Literal["compressed", "constrained"]) -> Figure:
    """Return an empty figure, which notebooks show without pyplot.

    Args:
        size: width and height in inches.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Drawing needs matplotlib: pip install 'algm_patch[viz]'") from error

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, dpi=80)
            return buffer.getvalue()

    return NotebookFigure(figsize=size, layout=layout)
