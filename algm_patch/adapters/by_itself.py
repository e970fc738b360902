"""Run something that the caller's context does not change, and that leaves no trace in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

R = TypeVar("R")


def devices_of(block: nn.Module) -> list[torch.device]:
    """Return where a copy of a block can be tried: on the CPU, or else, if it has kernels of its own, where it is."""
    found = {parameter.device for parameter in block.parameters() if parameter.is_cuda}
    return [torch.device("cpu"), *found] if len(found) == 1 else [torch.device("cpu")]


@contextmanager
def by_itself(device: torch.device) -> Iterator[None]:
    """Compute on a device, with gradients, in full precision, whatever the caller does; random numbers stay his."""
    others, precision = random.getstate(), torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.device(device),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        random.setstate(others)
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def seeded(device: torch.device, compute: Callable[[], R]) -> R:
    """Return what is computed with random numbers of one seed."""
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(0)
    random.seed(0)
    return compute()
