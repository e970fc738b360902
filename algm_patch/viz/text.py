"""Text on figures, measured before it is drawn: lines that fit a width."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

POINTS = 72  # in an inch
FITTED = 1.08  # by so much lines can be wider once their letters are fitted to the pixels of a notebook's picture


def check_matplotlib() -> None:
    """Raise ModuleNotFoundError, naming what to install, if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("Drawing needs matplotlib: pip install 'algm_patch[viz]'")


@cache
def text_width(text: str, size: float) -> float:
    """Return the width of a line in inches, at most: it depends on the pixels that its letters are fitted to.

    Args:
        size: of the letters in points.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return FITTED * float(width) / POINTS


def shortened(text: str, width: float, size: float) -> str:
    """Return a line with an ellipsis in its middle, if it is wider than ``width`` in inches."""
    kept = text
    for length in range(len(text) - 1, 0, -1):
        if text_width(kept, size) <= width:
            break
        kept = f"{text[: length - length // 2]}…{text[len(text) - length // 2 :]}"
    return kept


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Return lines of whole words, none wider than ``width`` in inches if its words are not."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
