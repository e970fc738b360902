"""The cost of an answer of a patched model: GFLOPs or seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.cost import BlockCost
from ..patching.forward_pass import ForwardPass
from ..patching.naming import class_name
from ..report.cost import VitCost
from ..trunks import handle_of

Predict = Callable[[nn.Module, Tensor], Any]

# The unit of each cost that a search can minimise.
UNITS = {"gflops": "GFLOPs", "time": "seconds"}


@dataclass(frozen=True)
class Run:
    """Hold an answer to one image, the forward passes of the ViT that it took, and the seconds."""

    answer: Any
    passes: Sequence[ForwardPass]
    seconds: float


def run(model: nn.Module, predict: Predict, image: Tensor) -> Run:
    """Return ``predict(model, image)`` and what it took.

    Args:
        model: patched.
        image: [1, 3, H, W].

    Raises:
        ValueError: if ``predict`` did not run the ViT.
    """
    synchronize(image)
    with handle_of(model).runtime.collecting() as passes:
        start = time.perf_counter()
        answer = predict(model, image)
        synchronize(image)
        seconds = time.perf_counter() - start
    if not passes:
        raise ValueError(f"predict did not run the ViT of {class_name(model)} on the images it was given")
    return Run(answer, passes, seconds)


def gflops_of(model: nn.Module, passes: Sequence[ForwardPass], guess: bool) -> float:
    """Return the GFLOPs of forward passes of the ViT.

    Args:
        guess: count the blocks as a plain ViT's if their attention is not recognized.

    Raises:
        ValueError: if it is not recognized, and ``guess`` is False.
    """
    return sum(sum(cost_of(model, past, guess).of_images(past)) for past in passes) / 1e9


def cost_of(model: nn.Module, past: ForwardPass, guess: bool) -> VitCost:
    """Return what a ViT costs for images of the grid of a forward pass; arguments and errors as of `gflops_of`."""
    handle = handle_of(model)
    try:
        return handle.cost_of(past)
    except ValueError:
        if not guess:
            raise
    return VitCost(0, [BlockCost(4 * past.width**2, 8 * past.width**2, 4 * past.width)] * handle.runtime.depth)


def synchronize(image: Tensor) -> None:
    """Wait until the GPU of any make that holds an image has done its work."""
    if image.device.type != "cpu":
        getattr(torch, image.device.type).synchronize()
