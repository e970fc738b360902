"""Count the operations of a model's ViT by ``model.algm.gflops``: unpatched, with ALGM, or with ToMe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from algm_patch import Algm
from algm_patch.report.cost import VitCost, matching_cost
from algm_patch.trunks import handle_of

from .patching import patched

# The attribute of a trunk under which a method other than ALGM keeps its meter.
METER = "cost_meter"


class Meter(Protocol):
    """Tell what the last forward pass cost, as ``model.algm`` does."""

    @property
    def gflops(self) -> float:
        """Return the GFLOPs of the ViT for an image, on average over the batch."""


@dataclass
class Count:
    """Hold the operations of all images of all forward passes so far."""

    operations: int = 0


@contextmanager
def counting(model: nn.Module) -> Iterator[Count]:
    """Count the operations of the model's one ViT in every ``model(images)``."""
    count = Count()
    with metered(model) as meter:

        def add(_: nn.Module, inputs: Any, __: object) -> None:
            count.operations += round(1e9 * meter.gflops * len(inputs[0]))

        hook = model.register_forward_hook(add)
        try:
            yield count
        finally:
            hook.remove()


def gflops(model: nn.Module, images: Tensor) -> float:
    """Run the model on images, and return the GFLOPs of its ViT for one of them, on average."""
    with metered(model) as meter:
        model(images)
        return meter.gflops


@contextmanager
def metered(model: nn.Module) -> Iterator[Meter]:
    """Yield the meter of a model: that of its method, or of a patch that merges nothing."""
    parts = [vars(part) for part in model.modules()]
    meter: Meter | None = next((part[METER] for part in parts if METER in part), None)
    if meter is not None:
        yield meter
    elif any(isinstance(part.get("algm"), Algm) for part in parts):
        yield handle_of(model)
    else:  # not every attention takes a mask, which proportional attention needs
        with patched(model, tau=1.05, gbm_layers=[], proportional_attention=False) as handle:
            yield handle


def operations_by_layer(
    cost: VitCost, length: int, num_prefix_tokens: int, left: Mapping[int, int], compared: Mapping[int, int]
) -> int:
    """Return the operations for an image whose tokens become fewer in given layers.

    Args:
        length: tokens in the first layer.
        left: tokens after the attention of a layer (counted from 1), and from there on.
        compared: the width of the vectors that are matched in a layer.
    """
    total = cost.fixed
    for layer, block in enumerate(cost.blocks, 1):
        after = left.get(layer, length)
        total += block(length, after) + matching_cost(length, num_prefix_tokens, compared.get(layer, 0))
        length = after
    return total
