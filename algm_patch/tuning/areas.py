"""Compare class maps by areas: for each class, the pixels that two maps share, and the pixels that each has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The classes [k] that occur in either of two maps, in rising order, and their areas [3, k].
Areas = tuple[Tensor, Tensor]


def areas_of(one: Tensor, other: Tensor) -> Areas:
    """Return the classes of two maps of equal shape, and the areas: shared, of the one map, of the other."""
    classes, index = torch.stack([one.flatten(), other.flatten()]).unique(return_inverse=True)
    in_one, in_other = index
    shared = in_one[in_one == in_other]
    return classes, torch.stack([found.bincount(minlength=len(classes)) for found in (shared, in_one, in_other)])


def pooled(images: Sequence[Areas]) -> Tensor:
    """Return the areas [N, 3, C] float64 of N images, over the C classes that occur in any of them."""
    classes = torch.cat([own for own, _ in images]).unique()
    table = torch.zeros(len(images), 3, len(classes), dtype=torch.float64)
    for row, (own, areas) in zip(table, images, strict=True):
        row[:, torch.searchsorted(classes, own)] = areas.double()
    return table


def equal_share(areas: Tensor) -> Tensor:
    """Return the share [...] of the pixels that have the same class in both maps, of areas [..., 3, C]."""
    shared, one, _ = areas.double().sum(-1).unbind(-1)
    return shared / one


def intersection_over_union(areas: Tensor) -> Tensor:
    """Return the IoU [..., C] float64 of areas [..., 3, C]; NaN where a class is in neither map."""
    shared, one, other = areas.double().unbind(-2)
    return shared / (one + other - shared)


def mean_iou(areas: Tensor) -> Tensor:
    """Return the mean IoU [...] of areas [..., 3, C] over the classes that occur in either map."""
    return intersection_over_union(areas).nanmean(-1)
