"""Sheets of panels: every place is computed in inches, so that columns align and no text meets another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .paint import Array
from .text import check_matplotlib, shortened, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # of a sheet in inches: a notebook shows it without shrinking the text much
CELL = (1.8, 5.2)  # the least and the most that a panel is wide: two lines of title fit above it
HEIGHT = (0.9, 1.4)  # the least that a panel is high in inches, and the most for its width
CHART = 1.2  # height of a chart that has a row of its own
MARGIN, GAP = 0.14, 0.14
TITLE, SMALL = 9, 8  # points
LINE = 0.185  # height of a line of text
FOOT = 0.36  # below panels, for scales
SPACE = 0.08  # between blocks of text
PATCH = 0.45  # width of a colour in a legend, with the room around it

Named = Sequence[tuple[str, Array]]


@dataclass(frozen=True)
class Notes:
    """Hold what stands above and below the panels.

    Attributes:
        above: a line.
        legends: titles with names and their colours [3], from 0 to 255.
        below: sentences.
    """

    above: str = ""
    legends: Sequence[tuple[str, Named]] = ()
    below: str = ""


def new_sheet(
    count: int, shape: tuple[int, ...], columns: int, notes: Notes, *, chart: bool = False, feet: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with its notes, and axes for panels.

    Args:
        count: the number of panels.
        shape: of a panel: height and width in pixels come first.
        columns: panels in a row.
        chart: one more place, for a chart, which takes what is left of the last row, or a row of its own.
        feet: room for a scale below each panel.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    check_matplotlib()  # before text is measured
    columns = min(columns, count + chart)
    least, most = CELL
    wide = min(max((WIDTH - 2 * MARGIN + GAP) / columns - GAP, least), most)
    high = min(max(wide * shape[0] / shape[1], HEIGHT[0]), HEIGHT[1] * wide)
    rows, own_row = -(-count // columns), chart and count % columns == 0
    width = columns * (wide + GAP) - GAP + 2 * MARGIN
    inside = width - 2 * MARGIN
    head, foot = 2 * LINE + 0.05, FOOT if feet or chart else 0.06
    above = wrapped(notes.above, inside, TITLE + 1)
    below = wrapped(notes.below, inside, SMALL)
    legends = [(title, fitting(title, named, inside)) for title, named in notes.legends]
    ends = [legend_rows(title, named, inside) * LINE + SPACE for title, named in legends]
    top = MARGIN + len(above) * 1.2 * LINE
    panels = rows * (head + high + foot) + own_row * (head + min(high, CHART) + foot)
    height = top + panels + SPACE + sum(ends) + len(below) * LINE + MARGIN
    figure = new_figure((width, height))

    def add(row: int, column: int, span: int, high_here: float) -> Axes:
        under = height - top - row * (head + high + foot) - head - high_here
        left = MARGIN + column * (wide + GAP)
        return figure.add_axes((left / width, under / height, (span * (wide + GAP) - GAP) / width, high_here / height))

    axes = [add(*divmod(number, columns), 1, high) for number in range(count)]
    if own_row:
        axes.append(add(rows, 0, columns, min(high, CHART)))
    elif chart:
        axes.append(add(rows - 1, count % columns, columns - count % columns, high))
    write(figure, MARGIN, height - MARGIN, above, TITLE + 1, weight="bold")
    y = height - top - panels - SPACE
    for (title, named), end in zip(legends, ends, strict=True):
        draw_legend(figure, title, named, inside, y)
        y -= end
    write(figure, MARGIN, y, below, SMALL, color="0.3")
    return figure, axes


def write(figure: Figure, left: float, top: float, lines: Sequence[str], size: float, **style: Any) -> None:
    """Write lines as they are, from a corner in inches on."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, top / high, "\n".join(lines), size=size, va="top", parse_math=False, **style)


def fitting(title: str, named: Named, width: float) -> Named:
    """Return the names of a legend, shortened where one does not fit a row."""
    return [(shortened(name, width - legend_indent(title) - PATCH, SMALL), colour) for name, colour in named]


def legend_columns(title: str, named: Named, width: float) -> int:
    """Return how many names of a legend fit beside each other."""
    longest = max(text_width(name, SMALL) for name, _ in named) + PATCH
    return max(1, min(len(named), int((width - legend_indent(title)) / longest)))


def legend_rows(title: str, named: Named, width: float) -> int:
    """Return how many rows a legend has."""
    return -(-len(named) // legend_columns(title, named, width))


def legend_indent(title: str) -> float:
    """Return how far from the left, in inches, the names begin."""
    return text_width(title, SMALL) + 0.15 if title else 0.0


def draw_legend(figure: Figure, title: str, named: Named, width: float, top: float) -> None:
    """Draw a title, and names with their colours beside it, from a height in inches down."""
    from matplotlib.patches import Patch

    wide, high = figure.get_size_inches()
    write(figure, MARGIN, top, [title], SMALL)
    handles = [Patch(color=tuple(colour / 255), label=name) for name, colour in named]
    corner = (MARGIN + legend_indent(title)) / wide, top / high
    columns = legend_columns(title, named, width)
    spaces = {"borderpad": 0, "borderaxespad": 0, "handlelength": 1.5, "handletextpad": 0.5, "columnspacing": 1.2}
    legend = figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=corner, ncols=columns, fontsize=SMALL, frameon=False, **spaces
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def new_figure(size: tuple[float, float], layout: str | None = None) -> Figure:
    """Return an empty figure, which notebooks show without pyplot.

    Args:
        size: width and height in inches.
        layout: of matplotlib; None: every place is given.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, dpi=80)
            return buffer.getvalue()

    return NotebookFigure(figsize=size, layout=layout)  # type: ignore[arg-type]
