"""Text on figures: where it stands once it is drawn."""

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

TOUCH = 0.5  # pixels that rounding may make two boxes share


def check_text(figure):
    """Check that all text is within the figure, and none of it meets other text or, from outside, a panel.

    In as few pixels as notebooks show it too, where letters are wider.
    """
    for dpi in (80, figure.dpi):
        figure.set_dpi(dpi)
        check_text_as_it_is(figure)


def check_text_as_it_is(figure):
    """Check the text in the pixels that the figure has."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in texts_of(figure) if text.get_text().strip()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        inside = Bbox.intersection(box, figure.bbox.padded(TOUCH))
        assert inside is not None, f"{text.get_text()!r} is outside of the figure"
        assert inside.size == pytest.approx(box.size), f"{text.get_text()!r} is cut"
    for (one, its), (other, others) in combinations(zip(texts, boxes, strict=True), 2):
        assert not overlap(its, others), f"{one.get_text()!r} meets {other.get_text()!r}"
    for axes in figure.axes:
        for text, box in zip(texts, boxes, strict=True):
            if text not in axes.texts:
                assert not overlap(box, axes.get_window_extent(renderer)), f"{text.get_text()!r} is on a panel"


def overlap(one, other):
    """Return whether two boxes share more than an edge."""
    common = Bbox.intersection(one, other)
    return common is not None and min(common.size) > TOUCH


def texts_of(figure):
    """Yield what a figure shows as text: of axes that are off only titles and what was written there."""
    yield from figure.texts
    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        yield from legend.get_texts() if legend else ()
    for axes in figure.axes:
        yield from (axes.title, axes._left_title, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            yield axis.label
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
