"""Count what a model's ViT costs, by the library's own cost model: unpatched, with ALGM, with ToMe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from algm_patch import apply_algm, remove_algm
from algm_patch.handle import Algm, handle_of
from algm_patch.report.cost import VitCost, matching_cost

Result = TypeVar("Result")


def counted(model: nn.Module, run: Callable[[], Result]) -> tuple[Result, int]:
    """Run a model, and return the operations of its one ViT for all images of all forward passes as well."""
    merger = next((part._tome.func.__self__ for part in model.modules() if "_tome" in part.__dict__), None)
    if merger is not None:
        with merger.grids() as grids:
            result = run()
        return result, sum(images * merger.operations(grid) for images, grid in grids)
    with patched(model) as handle:
        with handle._tracker.collecting() as passes:
            result = run()
        return result, sum(sum(handle._operations(begun)) for begun in passes)


def gflops(model: nn.Module, images: Tensor) -> float:
    """Return the GFLOPs of a forward pass of the model's ViT, for all images."""
    return counted(model, lambda: model(images))[1] / 1e9


@contextmanager
def patched(model: nn.Module) -> Iterator[Algm]:
    """Give a model a handle: its own, or that of a patch that merges nothing."""
    if any(isinstance(vars(part).get("algm"), Algm) for part in model.modules()):
        yield handle_of(model)
        return
    apply_algm(model, tau=2.0, gbm_layers=[], proportional_attention=False)  # which not every attention can
    try:
        yield handle_of(model)
    finally:
        remove_algm(model)


def layer_by_layer(
    cost: VitCost, length: int, num_prefix_tokens: int, left: Mapping[int, int], compared: Mapping[int, int]
) -> int:
    """Return the operations for an image of which so many tokens are left.

    Args:
        length: tokens of the first layer.
        left: tokens after the attention of a layer (from 1), and from there on.
        compared: in which layers tokens are matched, as vectors of what width.
    """
    total = cost.fixed
    for layer, block in enumerate(cost.blocks, 1):
        after = left.get(layer, length)
        total += block(length, after) + matching_cost(length, num_prefix_tokens, compared.get(layer, 0))
        length = after
    return total
