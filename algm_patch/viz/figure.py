"""Panels on paper: with matplotlib, in a figure of one's own or on axes that are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from ..deprecated import model_first
from ..handle import Algm, handle_of
from .paint import NO_CLASS, Array, distinct_colours
from .panels import last_groups, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # of a sheet in inches: what a notebook shows without shrinking the text much
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@model_first
def visualize(
    model: nn.Module,
    image: Any,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
    *,
    classes: Sequence[str] = (),
    palette: Any = None,
) -> Figure:
    """One sheet: the panels of :func:`panels` (as the supplement's Fig. 4 to 9), and the tokens of each layer.

    Args:
        model, image, predict, palette: as for :func:`panels`.
        classes: names, for a legend.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError, TypeError: as :func:`panels`.
    """
    colours = distinct_colours(len(classes)) if palette is None and classes else palette
    shown = panels(model, image, predict, colours)
    figure, axes = grid_of_axes(len(shown) + 1, next(iter(shown.values())).shape)
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


def draw(shown: Mapping[str, Array], columns: int = 3) -> Figure:
    """Panels by title, so many in a row.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    return draw_sheet(list(shown.items()), columns)


def draw_sheet(shown: Sequence[tuple[str, Array]], columns: int) -> Figure:
    """Panels with their titles, of which several may be the same."""
    lines = 1 + max(title.count("\n") for title, _ in shown)
    figure, axes = grid_of_axes(len(shown), shown[0][1].shape, columns, lines)
    draw_panels(axes, shown)
    return figure


def draw_panels(axes: Sequence[Axes], shown: Iterable[tuple[str, Array]]) -> None:
    """Panels with their titles, each on axes of its own."""
    for axis, (title, panel) in zip(axes, shown, strict=False):
        draw_panel(axis, panel, title)


def draw_panel(axes: Axes, panel: Array, title: str = "") -> None:
    """Colours [H, W, 3] as they are; values [H, W] as a map with its scale in a corner."""
    axes.set_axis_off()
    axes.set_title(title, fontsize="medium")
    drawn = axes.imshow(panel, interpolation="nearest", cmap="viridis")
    if panel.ndim == 2:
        draw_scale(axes, drawn)


def draw_scale(axes: Axes, drawn: Any) -> None:
    """In white on black edges, which is read on every colour."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    scale = axes.inset_axes((0.04, 0.1, 0.42, 0.035))
    axes.figure.colorbar(drawn, cax=scale, orientation="horizontal", ticks=MaxNLocator(3))
    scale.tick_params(colors="white", labelsize="small", length=2)
    for label in scale.get_xticklabels():
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])


def draw_tokens(axes: Axes, handle: Algm) -> None:
    """How many tokens each layer of the last forward pass left, before the backdrop of how many there would be."""
    from matplotlib.ticker import MaxNLocator

    counts = handle.tokens_per_layer
    height, width = handle.last_pass.grid
    layers = range(1, len(counts) + 1)
    whole = handle.last_pass.num_prefix_tokens + height * width
    axes.bar(layers, [whole] * len(counts), width=0.9, color="0.88")
    axes.bar(layers, counts, width=0.9, color="#3f90da")
    axes.set_title("tokens after each layer", fontsize="medium")
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, whole * 1.12)
    axes.spines[["top", "right"]].set_visible(False)
    for layer, count in zip(layers, counts, strict=True):
        if layer == 1 or count != counts[layer - 2]:
            axes.text(layer, count, f"{count}", ha="center", va="bottom", fontsize="small")


def draw_legend(figure: Figure, named: Sequence[tuple[str, Array]]) -> None:
    """Below a figure, names with their colours."""
    from matplotlib.patches import Patch

    handles = [Patch(color=tuple(colour / 255), label=name) for name, colour in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(named), 7), frameon=False)


@model_first
def contact_sheet(model: nn.Module, images: Any, columns: int = 4) -> Figure:
    """Draw, of each of many images, the groups that the last layer leaves, its name and how many tokens are left.

    Args:
        model: patched.
        images: a folder, whose images are taken by name, 2 before 10; or images as for :func:`panels`, or paths of
            images.

    Raises:
        ValueError: if there is no image; or as :func:`panels`.
        OSError: if a file cannot be read as an image.
    """
    cells = []
    for name, image in named_images(images):
        _, groups, count = last_groups(model, image)
        cells.append((f"{name}\n{count}", groups))
    if not cells:
        raise ValueError("contact_sheet got no images")
    return draw_sheet(cells, columns)


def named_images(images: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and images: of a folder its image files, by name, 2 before 10."""
    from PIL import Image, ImageOps

    if isinstance(images, (str, Path)):
        folder = Path(images)
        images = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGES), key=by_number)
    for number, image in enumerate(images, 1):
        if isinstance(image, (str, Path)):
            with Image.open(image) as opened:
                yield Path(image).name, ImageOps.exif_transpose(opened).convert("RGB")
        else:
            yield f"{number}", image


def by_number(path: Path) -> tuple[list[str | int], str]:
    """Return a key that sorts files by the numbers in their names, 2 before 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def grid_of_axes(count: int, shape: tuple[int, ...], columns: int = 3, lines: int = 1) -> tuple[Figure, Any]:
    """For so many panels of this shape, with titles of so many lines."""
    columns = min(columns, count)
    rows = -(-count // columns)
    side = WIDTH / columns
    figure = new_figure((WIDTH, rows * (side * shape[0] / shape[1] + 0.15 + 0.2 * lines)), "constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes


def new_figure(size: tuple[float, float], layout: Literal["compressed", "constrained"]) -> Figure:
    """Of this width and height in inches; notebooks show it without pyplot.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Drawing needs matplotlib: pip install 'algm_patch[viz]'") from error

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, dpi=80)
            return buffer.getvalue()

    return Shown(figsize=size, layout=layout)
