"""The cost of an answer of a patched model: GFLOPs or seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..patching.naming import class_name
from ..trunks import handle_of

Predict = Callable[[nn.Module, Tensor], Any]

# The unit of each cost that a search can minimise.
UNITS = {"gflops": "GFLOPs", "time": "seconds"}


def answer_and_cost(model: nn.Module, predict: Predict, image: Tensor, unit: str) -> tuple[Any, float]:
    """Return ``predict(model, image)`` and its cost.

    Args:
        model: patched.
        image: [1, 3, H, W].
        unit: "GFLOPs" of all forward passes of the ViT, or "seconds".

    Raises:
        ValueError: if ``predict`` did not run the ViT.
    """
    handle = handle_of(model)
    synchronize(image)
    with handle.runtime.collecting() as passes:
        start = time.perf_counter()
        answer = predict(model, image)
        synchronize(image)
        seconds = time.perf_counter() - start
    if not passes:
        raise ValueError(f"predict did not run the ViT of {class_name(model)} on the images it was given")
    if unit == "seconds":
        return answer, seconds
    return answer, sum(sum(handle.cost_of(each).of_images(each)) for each in passes) / 1e9


def synchronize(image: Tensor) -> None:
    """Wait until the GPU that holds an image has done its work."""
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
