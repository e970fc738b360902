"""Run a model as in evaluation, eagerly, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .compiling import eagerly


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run every module in eval mode and eagerly; afterwards each is in the mode it had, and compiled as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with eagerly(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
