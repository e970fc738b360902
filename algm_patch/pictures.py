"""Panels as arrays [H, W, 3] uint8, or [H, W] float32 for a map of values; each function paints one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Ten hues that colour-blind people can tell apart (Petroff 2021, arXiv:2107.02270).
HUES = ("3f90da", "ffa90e", "bd1f01", "94a4a2", "832db6", "a96b59", "e76300", "b9ac70", "717581", "92dadd")
SHADES = ((0.0, 0.0), (0.45, 0.0), (0.55, 1.0), (0.7, 0.0))  # so much of black (0) or white (1)
DIFFERENT = (213, 94, 0)  # vermilion, of Okabe and Ito's palette
LINES = 500  # pixels of a picture's longer side for each pixel of an outline's width


@dataclass(frozen=True)
class Canvas:
    """Where tokens are on a picture of the model's input.

    Attributes:
        size: height and width of the picture in pixels.
        input_size: those of the model's input, which shows the same at another resolution.
        side: height and width of a token in pixels of the input.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    side: tuple[int, int]

    def spread(self, tokens: Array) -> Array:
        """A value per token [h, w, ...] to a value per pixel [H, W, ...]."""
        rows, columns = (
            np.minimum((np.arange(pixels) + 0.5) * seen / pixels // side, count - 1).astype(int)
            for pixels, seen, side, count in zip(self.size, self.input_size, self.side, tokens.shape, strict=False)
        )
        return tokens[rows[:, None], columns]


def paint_similarity(similarity: Array, window: tuple[int, int], grid: tuple[int, int], canvas: Canvas) -> Array:
    """Of each window [h, w], as a map [H, W] float32; NaN for tokens that are in no window.

    Args:
        window: height and width in tokens.
        grid: height and width of the image in tokens.
    """
    tokens = np.full(grid, np.nan, np.float32)
    inside = similarity.repeat(window[0], 0).repeat(window[1], 1)
    tokens[: inside.shape[0], : inside.shape[1]] = inside
    return canvas.spread(tokens)


def paint_groups(picture: Array, groups: Array, canvas: Canvas) -> Array:
    """Each group in its mean colour, with a thin line around those of more than one token.

    Args:
        picture: [H, W, 3] uint8.
        groups: [h, w], one integer per token.
    """
    _, numbers, tokens = np.unique(groups, return_inverse=True, return_counts=True)
    labels = canvas.spread(numbers.reshape(groups.shape))
    pixels = np.maximum(np.bincount(labels.ravel(), minlength=len(tokens)), 1)
    sums = [np.bincount(labels.ravel(), picture[..., i].ravel(), len(tokens)) for i in range(3)]
    painted = (np.stack(sums, -1) / pixels[:, None]).round().astype(np.uint8)[labels]
    edge = outlines(labels, tokens[labels] > 1)
    # Grey lines show on dark and on light groups alike.
    painted[edge] = np.where(painted[edge].mean(-1, keepdims=True) > 127, painted[edge] // 2, 128 + painted[edge] // 2)
    return painted


def outlines(labels: Array, outlined: Array) -> Array:
    """[H, W] bool: pixels on the lower and right side of an edge between labels, one of them ``outlined``."""
    edge = np.zeros(labels.shape, bool)
    for offset in range(1, 1 + max(1, round(max(labels.shape) / LINES))):
        edge[:, offset:] |= (labels[:, offset:] != labels[:, :-offset]) & (outlined[:, offset:] | outlined[:, :-offset])
        edge[offset:] |= (labels[offset:] != labels[:-offset]) & (outlined[offset:] | outlined[:-offset])
    return edge


def paint_classes(classes: Array, palette: Array) -> Array:
    """Of each pixel [H, W], in the palette's colours [C, 3] uint8.

    Raises:
        ValueError: if the palette has too few.
    """
    if classes.max(initial=0) >= len(palette):
        raise ValueError(f"palette has {len(palette)} colours, the prediction holds class {classes.max()}")
    return palette[classes]


def paint_difference(picture: Array, before: Array, after: Array) -> Array:
    """The picture in light grey, and in vermilion the pixels whose class [H, W] is another one."""
    grey = 128 + picture.mean(-1, keepdims=True) / 2
    return np.where((before != after)[..., None], DIFFERENT, grey).astype(np.uint8)


def distinct_colours(count: int) -> Array:
    """[count, 3] uint8: ten hues that colour-blind people can tell apart, then their shades.

    First as they are, then darker, lighter, and darkest. From some thirty classes on a legend must name them.
    """
    return np.array([shade(*divmod(i, len(HUES))) for i in range(count)], np.uint8).reshape(count, 3)


def shade(turn: int, hue: int) -> Sequence[int]:
    share, towards = SHADES[turn % len(SHADES)]
    return [round((1 - share) * part + 255 * share * towards) for part in bytes.fromhex(HUES[hue])]
