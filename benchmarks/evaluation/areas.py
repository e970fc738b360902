"""Compare class maps by areas: for each class, the pixels that two maps share, and the pixels that each has."""

from __future__ import annotations

import torch
from torch import Tensor


def areas_of(confusion: Tensor) -> Tensor:
    """Return the areas [3, C] that a confusion matrix [C, C] tells: shared, of the rows' map, of the columns' map."""
    return torch.stack([confusion.diag(), confusion.sum(1), confusion.sum(0)])


def intersection_over_union(areas: Tensor) -> Tensor:
    """Return the IoU [..., C] float64 of areas [..., 3, C]; NaN where a class is in neither map."""
    shared, one, other = areas.double().unbind(-2)
    return shared / (one + other - shared)


def mean_iou(areas: Tensor) -> Tensor:
    """Return the mean IoU [...] of areas [..., 3, C] over the classes that occur in either map."""
    return intersection_over_union(areas).nanmean(-1)


def equal_share(areas: Tensor) -> Tensor:
    """Return the share [...] of the pixels that have the same class in both maps, of areas [..., 3, C]."""
    shared, one, _ = areas.double().sum(-1).unbind(-1)
    return shared / one
