"""Painting: each function returns a panel [H, W, 3] uint8, or [H, W] float32 for a map of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Ten hues that colour-blind people can tell apart (Petroff 2021, arXiv:2107.02270).
HUES = ("3f90da", "ffa90e", "bd1f01", "94a4a2", "832db6", "a96b59", "e76300", "b9ac70", "717581", "92dadd")
SHADES = ((0.0, 0.0), (0.45, 0.0), (0.55, 1.0), (0.7, 0.0))  # a share, and of what: black (0) or white (1)
DIFFERENT = (213, 94, 0)  # vermilion, of Okabe and Ito's palette
NO_CLASS = (224, 224, 224)  # light grey, for pixels that have no class
IGNORED = 255  # marks pixels without a class in data sets whose files hold no negative numbers


@dataclass(frozen=True)
class Canvas:
    """Tell where tokens are on a picture of the model's input.

    Attributes:
        size: height and width of the picture in pixels.
        input_size: height and width of the model's input, which shows the same at another resolution.
        token_size: height and width of a token in pixels of the input.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    token_size: tuple[int, int]

    def spread(self, tokens: Array) -> Array:
        """Return a value for each pixel [H, W, ...] from a value for each token [h, w, ...]."""
        sides = zip(self.size, self.input_size, self.token_size, tokens.shape, strict=False)
        rows, columns = (
            np.minimum((np.arange(pixels) + 0.5) * input_pixels / pixels // token, count - 1).astype(int)
            for pixels, input_pixels, token, count in sides
        )
        return tokens[rows[:, None], columns]


def paint_similarity(similarity: Array, window: tuple[int, int], grid: tuple[int, int], canvas: Canvas) -> Array:
    """Return a map of the windows' similarities; NaN for tokens that are in no window.

    Args:
        similarity: [h, w], one number for each window.
        window: height and width in tokens.
        grid: height and width of the image in tokens.
    """
    tokens = np.full(grid, np.nan, np.float32)
    inside = similarity.repeat(window[0], 0).repeat(window[1], 1)
    tokens[: inside.shape[0], : inside.shape[1]] = inside
    return canvas.spread(tokens)


def paint_classes(classes: Array, palette: Array) -> Array:
    """Return the colour of each pixel's class [H, W], and NO_CLASS where a pixel has none.

    Args:
        palette: [C, 3] uint8.

    Raises:
        ValueError: if a pixel's class is beyond the palette.
    """
    none = without_class(classes, len(palette))
    largest = classes.max(initial=-1, where=~none)
    if largest >= len(palette):
        raise ValueError(
            f"palette has {len(palette)} colours, the prediction holds class {largest}. Give a colour for each class "
            "(without palette=, there is one for each name in classes=)"
        )
    return np.append(palette, [NO_CLASS], 0).astype(np.uint8)[np.where(none, len(palette), classes)]


def without_class(classes: Array, count: int) -> Array:
    """Return where pixels have none of ``count`` classes [H, W] bool: below 0, or 255 if there are fewer."""
    return (classes < 0) | ((classes == IGNORED) & (count <= IGNORED))


def number_of_classes(*predictions: Array) -> int:
    """Return the number of classes in predictions of whole numbers; 255 is a class only if a larger number occurs."""
    found = np.unique(np.concatenate([classes.ravel() for classes in predictions]))
    classes = found[~without_class(found, int(found.max()))]
    return int(classes.max(initial=-1)) + 1


def check_palette(palette: Any) -> Array:
    """Return a palette as [C, 3] uint8.

    Raises:
        ValueError: if it is something else, such as fractions of 1.
    """
    colours = np.asarray(palette)
    whole = np.issubdtype(colours.dtype, np.integer)
    if (
        colours.ndim != 2
        or colours.shape[1] != 3
        or not whole
        or colours.min(initial=0) < 0
        or colours.max(initial=0) > 255
    ):
        raise ValueError(
            "palette is [C, 3], a row of red, green and blue for each class, in whole numbers from 0 to 255; got "
            f"{list(colours.shape)} of {colours.dtype}"
            f"{f' from {colours.min()} to {colours.max()}' if colours.size and colours.dtype.kind in 'iuf' else ''}"
        )
    return colours.astype(np.uint8)


def paint_difference(picture: Array, before: Array, after: Array) -> Array:
    """Return the picture in light grey, with vermilion where the classes [H, W] before and after differ."""
    grey = 128 + picture.mean(-1, keepdims=True) / 2
    return np.where((before != after)[..., None], DIFFERENT, grey).astype(np.uint8)


def distinct_colours(count: int) -> Array:
    """Return colours [count, 3] uint8: ten hues that colour-blind people can tell apart, then their shades.

    The hues come as they are, then darker, lighter, and darkest. From some thirty classes on, colours alone do not tell
    classes apart.
    """
    return np.array([shade(*divmod(i, len(HUES))) for i in range(count)], np.uint8).reshape(count, 3)


def shade(turn: int, hue: int) -> Sequence[int]:
    """Return red, green and blue of a hue (an index of HUES) in the shade of a turn (an index of SHADES)."""
    share, towards = SHADES[turn % len(SHADES)]
    return [round((1 - share) * part + 255 * share * towards) for part in bytes.fromhex(HUES[hue])]
