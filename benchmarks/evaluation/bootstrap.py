"""Estimate how far a measured figure would move with other images: the bootstrap over images.

Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13: percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from algm_patch.tuning.areas import equal_share, mean_iou
from algm_patch.tuning.bootstrap import resampled

from .score import Result

ENDS = (0.025, 0.975)  # of an interval of 95 %


@dataclass(frozen=True)
class Estimate:
    """Hold a figure in percent, and the ends of the interval of 95 %; they are NaN where one image tells nothing."""

    value: float
    low: float = torch.nan
    high: float = torch.nan

    @property
    def interval(self) -> str:
        """Return the ends as text."""
        return "no interval" if self.low != self.low else f"{self.low:.1f} to {self.high:.1f}"

    @property
    def signed_interval(self) -> str:
        """Return the ends of a difference as text."""
        return "no interval" if self.low != self.low else f"{self.low:+.1f} to {self.high:+.1f}"


def estimate(measure: Callable[..., Tensor], *images: Tensor) -> Estimate:
    """Return a measure of all images, in percent, and its interval.

    Args:
        measure: figures [...] of areas [..., 3, C] that are summed over images; of several, if it compares models.
        images: areas [N, 3, C] of each image, for each of the arguments of ``measure``.
    """
    value = 100 * measure(*(areas.sum(0) for areas in images)).item()
    if len(images[0]) == 1:
        return Estimate(value)
    samples = 100 * measure(*(resampled(areas.double()) for areas in images))  # of two models, of the same images
    low, high = samples.nanquantile(torch.tensor(ENDS, dtype=torch.float64)).tolist()
    return Estimate(value, low, high)


def agreement(result: Result) -> Estimate:
    """Return the share of the pixels that are predicted as in the reference."""
    return estimate(equal_share, compared(result))


def class_agreement(result: Result) -> Estimate:
    """Return the mean IoU with the reference's predictions."""
    return estimate(mean_iou, compared(result))


def miou_difference(result: Result, baseline: Result) -> Estimate:
    """Return the mIoU minus that of another model on the same images."""
    return estimate(lambda one, other: mean_iou(one) - mean_iou(other), result.labelled, baseline.labelled)


def compared(result: Result) -> Tensor:
    """Return the areas of a result that was compared with a reference, or raise ValueError."""
    if result.compared is None:
        raise ValueError("the result was compared with no other predictions: call evaluate with a reference")
    return result.compared
