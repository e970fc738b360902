"""The cost model: operations of a ViT, from the sizes of its weights and the tokens of a forward pass.

Multiply and add count apart, as in torch's counter. What counts are the products: of the patch embedding, of the
blocks' weights with their tokens, of attention between tokens, of learned position functions, and of matching. The
device, the dtype, the attention kernel and the compiler change nothing; nor do the other images of a batch. What comes
behind the last block (norms, necks, heads) costs the same before and after and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..adapters.cost import CONVOLUTIONS, BlockCost, explain_failure, layers_in, without_memory
from ..core.rule import PLAIN, Rule
from ..patching.block_pass import BlockPass
from ..patching.find_vit import Vit
from ..patching.forward_pass import ForwardPass

# The side, in pixels, of the image that shows how many pixels of a side make one token.
PROBE = 4096


@dataclass(frozen=True)
class VitCost:
    """Hold what a ViT costs for each image.

    Attributes:
        fixed: operations that depend on the grid alone: patch embedding and position functions.
        blocks: the cost of each block.
    """

    fixed: int
    blocks: Sequence[BlockCost]

    def of_images(self, past: ForwardPass) -> list[int]:
        """Return the operations for each image of a forward pass."""
        totals = [self.fixed] * past.batch
        for layer, block in past.blocks.items():
            whole = [block.num_prefix_tokens + past.grid[0] * past.grid[1]] * past.batch
            before = whole if block.before is None else token_counts(block.before.sizes)
            after = whole if block.after is None else token_counts(block.after.sizes)
            in_mlp = after if past.settings.place == "before_mlp" else before
            if block.views > 1:  # each has its part in the cost of its sequence, in which nothing merges
                before = [count * block.views for count in whole] if block.before is None else each_view(before, block)
                in_mlp = before
            costs = [self.blocks[layer](*counts) // block.views for counts in zip(before, in_mlp, strict=True)]
            totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
            for plan in block.plans.values():
                if plan.rule is None:
                    continue
                prefix, counts = block.num_prefix_tokens, token_counts(plan.sizes)
                matching = [matching_cost(count, prefix, plan.width, plan.rule) for count in counts]
                totals = [total + cost for total, cost in zip(totals, matching, strict=True)]
        return totals

    def without_merging(self, past: ForwardPass) -> int:
        """Return the operations for an image of a forward pass if nothing had merged, nor been compared."""
        patches = past.grid[0] * past.grid[1]
        total = self.fixed
        for layer, block in past.blocks.items():
            count = (block.num_prefix_tokens + patches) * block.views
            total += self.blocks[layer](count, count) // block.views
        return total


def each_view(counts: list[int], block: BlockPass) -> list[int]:
    """Return for each view how many tokens its sequence has."""
    return [count for count in counts for _ in range(block.views)]


def vit_cost(trunk: nn.Module, vit: Vit, grid: tuple[int, int]) -> VitCost:
    """Return what a ViT costs for images that make this grid of patches."""
    embedding = embedding_cost(trunk, vit.projection, grid)
    positions = vit.adapters[0].position_cost(trunk, grid)
    blocks = [adapter.cost(block) for block, adapter in zip(vit.blocks, vit.adapters, strict=True)]
    return VitCost(embedding + positions, blocks)


def token_counts(sizes: Tensor) -> list[int]:
    """Return how many tokens each image has, of the sizes [B, M] of its tokens, zero past an image's own."""
    counts: list[int] = (sizes > 0).sum(1).tolist()
    return counts


def matching_cost(length: int, num_prefix_tokens: int, width: int, rule: Rule = PLAIN) -> int:
    """Return the operations that compare the tokens of a sequence by a rule, as vectors of this width."""
    return 2 * rule.products(length, num_prefix_tokens, width)


# -- patch embedding


# By projection and grid: what runs of the modules themselves have shown.
SHOWN: WeakKeyDictionary[nn.Module, dict[tuple[int, int], int]] = WeakKeyDictionary()


def embedding_cost(trunk: nn.Module, projection: nn.Module, grid: tuple[int, int]) -> int:
    """Return the operations of the patch projection and of a stem of convolutions in front of it.

    One layer is counted by its weights. How large the features inside a stem are shows a run on tensors without
    memory, of an image whose sides are whole numbers of tokens.

    Raises:
        ValueError: if they take more than an image, or leave no grid [B, D, H, W].
    """
    parts = [*stem_of(trunk, projection), projection]
    if sum(isinstance(layer, CONVOLUTIONS) for part in parts for layer in part.modules()) < 2:
        return 2 * grid[0] * grid[1] * sum(layer.weights for layer in layers_in(projection))
    shown = SHOWN.setdefault(projection, {})
    if grid not in shown:
        with torch.no_grad(), explain_failure(projection, "Time can be measured: tune(model, images, cost='time')"):
            stem = [without_memory(part) for part in parts]
            _, probed = count_operations(stem, PROBE, PROBE)
            height, width = (count * round(PROBE / side) for count, side in zip(grid, probed, strict=True))
            shown[grid], _ = count_operations(stem, height, width)
    return shown[grid]


def stem_of(trunk: nn.Module, projection: nn.Module) -> list[nn.Module]:
    """Return the modules with convolutions that stand in front of the projection, beside it."""
    path = next(name for name, module in trunk.named_modules() if module is projection)
    beside = list(trunk.get_submodule(path.rpartition(".")[0]).children())
    before = beside[: beside.index(projection)]
    return [module for module in before if any(isinstance(layer, CONVOLUTIONS) for layer in module.modules())]


def count_operations(stem: Sequence[nn.Module], height: int, width: int) -> tuple[int, tuple[int, int]]:
    """Return the operations of modules without memory on an image of this size, and the grid that they leave."""
    total = 0

    def count(layer: Any, _: object, output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.weight[0].numel()

    layers = [layer for part in stem for layer in part.modules() if isinstance(layer, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    channels = next(layer.in_channels for layer in layers if isinstance(layer, CONVOLUTIONS))
    x: Any = torch.empty(1, channels, height, width, device="meta", dtype=layers[0].weight.dtype)
    for part in stem:
        x = part(x)
        x = x[-1] if isinstance(x, (list, tuple)) else x
    for hook in hooks:
        hook.remove()
    return total, (x.shape[2], x.shape[3])
