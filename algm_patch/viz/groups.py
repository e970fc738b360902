"""Groups of merged tokens: painted on the picture, and what their colours mean."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .paint import Array, Canvas

# Patches from which on a group has the next colour, and the colours: from matplotlib's "plasma", which those who are
# colour-blind see grow lighter.
STEPS = (2, 4, 8, 16, 32)
COLOURS = np.array([(65, 4, 157), (156, 23, 158), (218, 90, 106), (249, 149, 64), (247, 226, 37)], np.uint8)
TINT = 0.7  # share of the colour in a group; the rest is the group's mean
PIXELS_PER_LINE = 250  # of a picture's longer side, for each pixel of an outline's width
LINES_PER_TOKEN = 6  # at least so many outlines would fit in a token: of large grids something is left to see
CAPTION = (
    "Outlined: merged, one token for each group. The colour tells how many patches are in the group, also where "
    "they are apart. Where the picture shows, each patch is a token of its own."
)


def paint_groups(picture: Array, groups: Array, canvas: Canvas) -> Array:
    """Return the picture, with groups of more than one token tinted by their size and outlined in white.

    Args:
        picture: [H, W, 3] uint8.
        groups: [h, w], the number of each token's group.
    """
    _, numbers, tokens = np.unique(groups, return_inverse=True, return_counts=True)
    labels = canvas.spread(numbers.reshape(groups.shape))
    pixels = np.maximum(np.bincount(labels.ravel(), minlength=len(tokens)), 1)
    sums = [np.bincount(labels.ravel(), picture[..., i].ravel(), len(tokens)) for i in range(3)]
    means = np.stack(sums, -1) / pixels[:, None]
    tinted = TINT * COLOURS[np.searchsorted(STEPS, tokens, "right") - 1] + (1 - TINT) * means
    merged = tokens[labels] > 1
    painted = np.where(merged[..., None], tinted.round().astype(np.uint8)[labels], picture)
    token = min(pixels / count for pixels, count in zip(labels.shape, groups.shape, strict=True))
    painted[outlines(labels, merged, min(max(labels.shape) / PIXELS_PER_LINE, token / LINES_PER_TOKEN))] = 255
    return painted


def outlines(labels: Array, outlined: Array, width: float) -> Array:
    """Return the pixels [H, W] bool below and to the right of an edge between two labels, one of them outlined.

    Args:
        labels: [H, W] integers.
        outlined: [H, W] bool, where a label is outlined.
        width: of the lines in pixels; they have at least one.
    """
    edge = np.zeros(labels.shape, bool)
    for offset in range(1, 1 + max(1, round(width))):
        edge[:, offset:] |= (labels[:, offset:] != labels[:, :-offset]) & (outlined[:, offset:] | outlined[:, :-offset])
        edge[offset:] |= (labels[offset:] != labels[:-offset]) & (outlined[offset:] | outlined[:-offset])
    return edge


def size_colours() -> list[tuple[str, Array]]:
    """Return the colours of groups [3] with the numbers of patches that they stand for, for a legend."""
    names = [f"{least} to {most - 1}" for least, most in pairwise(STEPS)]
    return list(zip([*names, f"{STEPS[-1]} or more patches"], COLOURS, strict=True))
