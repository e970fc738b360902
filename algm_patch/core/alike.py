"""Divide the images of a packed sequence into groups of like length, each a batch with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .alignment import in_aligned_rows

# What one more call of attention costs, in logits of one head. On an H100, four times as much changed the time of
# ViT-S, ViT-L and DINOv2-L by less than 4 %.
CALL = 4e6
# More images than this are divided at some places only.
PLACES = 32


@dataclass(frozen=True)
class Alike:
    """Hold one group.

    Attributes:
        images: [g], of the batch.
        rows: [g, m]; the place in the packed sequence of each token; past an image's own, of its last.
    """

    images: Tensor
    rows: Tensor


class Groups:
    """Hold the groups of a packed sequence.

    Args:
        counts: [B], the tokens of each image.
        lengths: the same as numbers; empty: not known, and all images are one group.
        longest, total: the largest count, and the sum of all.

    Attributes:
        back: [T]; where each token of the sequence is among the tokens of all groups, one after the other.
    """

    def __init__(self, counts: Tensor, lengths: Sequence[int], longest: int, total: int) -> None:
        ends = counts.cumsum(0)
        # Sorted here and on the device alike, so that nothing has to be sent there.
        order = counts.argsort(descending=True, stable=True)
        sizes = sorted(lengths, reverse=True) or [longest]
        cuts = [*divide(sizes), len(lengths) or counts.shape[0]]
        self.groups: list[Alike] = []
        places, base = [], 0
        for start, end in pairwise(cuts):
            images, most = order[start:end], sizes[start]
            within = torch.arange(most, device=counts.device).minimum(counts[images, None] - 1)
            self.groups.append(Alike(images, (ends - counts)[images, None] + within))
            places.append(base + most * torch.arange(end - start, device=counts.device))
            base += most * (end - start)
        starts = torch.empty_like(order).scatter(0, order, torch.cat(places)) - (ends - counts)
        place = torch.arange(total, device=counts.device)
        self.back = place + starts[torch.bucketize(place, ends, right=True)]
        self._bias: tuple[Tensor, list[Tensor]] | None = None

    def biases(self, bias: Tensor) -> list[Tensor]:
        """Return the part of a bias [B, 1, 1, M] that is each group's, [g, 1, 1, m]; the same for every layer."""
        if self._bias is None or self._bias[0] is not bias:
            self._bias = bias, [in_aligned_rows(bias[each.images, ..., : each.rows.shape[1]]) for each in self.groups]
        return self._bias[1]


def of_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return these rows [...] of a sequence [T, ...], in one batch."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def divide(lengths: Sequence[int]) -> list[int]:
    """Return where to divide lengths, sorted from the longest, so that padding and calls cost the least together.

    Returns:
        The first index of each group, in order.
    """
    step = -(-len(lengths) // PLACES)
    places = [*range(0, len(lengths), step), len(lengths)]
    # The cost up to each place, and the place where the last group before it begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for i, end in enumerate(places[1:], 1):
        best.append(min((best[j][0] + CALL + (end - places[j]) * lengths[places[j]] ** 2, j) for j in range(i)))
    cuts, place = [], len(places) - 1
    while place:
        place = best[place][1]
        cuts.append(places[place])
    return cuts[::-1]
