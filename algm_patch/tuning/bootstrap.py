"""Estimate what settings keep on images that nobody has seen: the bootstrap over images.

Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13: percentile intervals.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES, SEED = 1000, 0
# What is kept on other images is above this quantile of the resamples with 95 % confidence.
QUANTILE = 0.05


def resampled(table: Tensor) -> Tensor:
    """Return the sums [RESAMPLES, ...] over N images, drawn with replacement, of a table [N, ...] float64.

    The same images are drawn for all tables of N images.
    """
    count = len(table)
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(SEED))
    times = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    return (times @ table.flatten(1)).unflatten(1, table.shape[1:])


def lower_bound(estimates: Tensor) -> float:
    """Return the 5 % quantile of the estimates [RESAMPLES] that resamples gave."""
    return estimates.quantile(QUANTILE).item()
