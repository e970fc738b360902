"""What every adapter must satisfy (five points), over every kind of model that the library patches.

The models are in cases_*.py, one file a library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model, its input and the call that gives its final tokens."""

    build: Callable[[], nn.Module]
    image: Callable[[], Tensor]
    tokens: Callable[[Any, Tensor], Tensor]
    position_inputs: Callable[[int], dict[str, Tensor]]
    """Arguments of the call, for a number of tokens, whose meaning depends on the tokens' order."""


# How the computation is done: parameters' dtype, and whether under autocast.
PRECISIONS = {
    "float32": (torch.float32, contextlib.nullcontext),
    "bfloat16": (torch.bfloat16, contextlib.nullcontext),
    "autocast": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
}
