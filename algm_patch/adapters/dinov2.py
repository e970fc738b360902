"""Split the blocks of torch.hub's DINOv2 (facebookresearch/dinov2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .attention import attend, is_own
from .base import Adapter
from .features import input_projection
from .registry import reads_blocks, register

TRUNK = "dinov2.models.vision_transformer"
LAYERS = "dinov2.layers"


@register(f"{LAYERS}.block.Block.forward")
@register(f"{LAYERS}.block.NestedTensorBlock.forward")
class DinoBlock(Adapter):
    projection = "patch_embed.proj"

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens) -> Tensor:
        def attention_branch(x: Tensor, images: Any) -> Tensor:
            y = block.norm1(x)
            if tokens.packing is None and tokens.key_bias is None:
                return block.ls1(block.attn(y))
            bias = None if tokens.key_bias is None else tokens.key_bias[images]
            return block.ls1(attend(block.attn, y, bias, block.attn.num_heads))

        return add_branch(block, x, attention_branch)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return add_branch(block, x, lambda x, _: block.ls2(block.mlp(block.norm2(x))))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        attention = f"{LAYERS}.attention"
        return is_own(block.attn, f"{attention}.Attention.forward", f"{attention}.MemEffAttention.forward")

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        return DinoBlock.takes_mask(block) and not block.attn._forward_hooks

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        return input_projection(block, "attn", compare)


def add_branch(block: Any, x: Tensor, branch: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """Return ``x`` plus what a branch makes of it, with the stochastic depth of the block.

    Above a rate of 0.1 (of 0, if it has no drop path) some images skip the branch: it is not computed for them.

    Args:
        x: [B, L, D].
        branch: takes tokens of some images, and which images of the batch these are.
    """
    drop_path = getattr(block, "drop_path1", None)  # the first for both branches, as upstream; DINOv3 has none
    if not block.training or block.sample_drop_ratio <= (0 if drop_path is None else 0.1):
        y = branch(x, slice(None))
        return x + (y if drop_path is None else drop_path(y))
    images = torch.randperm(len(x), device=x.device)[: max(int(len(x) * (1 - block.sample_drop_ratio)), 1)]
    return x.index_add(0, images, branch(x[images], images).to(x.dtype), alpha=len(x) / len(images))


@reads_blocks(f"{TRUNK}.BlockChunk.forward")
def last_block_of_chunk(chunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the last block of a chunk."""
    return [len(chunk) - 1]


@reads_blocks(f"{TRUNK}.DinoVisionTransformer.forward_features")
def last_block(trunk: Any, x: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the last block; raise ValueError if the input is a list of crops."""
    if isinstance(x, list):
        raise ValueError(
            "DINOv2 was given a list of crops, which it packs into one sequence without a grid. Run the crops one "
            "after the other, or call remove_algm first"
        )
    return [trunk.n_blocks - 1]


@reads_blocks(
    f"{TRUNK}.DinoVisionTransformer._get_intermediate_layers_not_chunked",
    f"{TRUNK}.DinoVisionTransformer._get_intermediate_layers_chunked",
)
def intermediate_blocks(trunk: Any, x: Tensor, n: Any = 1) -> Iterable[int]:
    """Return the last ``n`` blocks, or those that ``n`` lists."""
    return range(trunk.n_blocks - n, trunk.n_blocks) if isinstance(n, int) else n
