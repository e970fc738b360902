"""Blocks of torch.hub's DINOv2 (facebookresearch/dinov2) and of open_clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention import attend, is_own
from .base import Adapter
from .features import input_projection
from .registry import path_of, reads, register

DINO = "dinov2.models.vision_transformer"
DINO_LAYERS = "dinov2.layers"
CLIP = "open_clip.transformer"


@register(f"{DINO_LAYERS}.block.Block.forward")
@register(f"{DINO_LAYERS}.block.NestedTensorBlock.forward")
class DinoBlock(Adapter):
    projection = "patch_embed.proj"

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens) -> Tensor:
        def branch(x: Tensor, images: Any) -> Tensor:
            y = block.norm1(x)
            if tokens.packing is None and tokens.key_bias is None:
                return block.ls1(block.attn(y))
            bias = None if tokens.key_bias is None else tokens.key_bias[images]
            return block.ls1(attend(block.attn, y, bias, block.attn.num_heads))

        return add_branch(block, x, branch)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return add_branch(block, x, lambda x, _: block.ls2(block.mlp(block.norm2(x))))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        attention = f"{DINO_LAYERS}.attention"
        return is_own(block.attn, f"{attention}.Attention.forward", f"{attention}.MemEffAttention.forward")

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        return DinoBlock.takes_mask(block) and not block.attn._forward_hooks

    @staticmethod
    def features(block: Any, metric: str) -> tuple[str, int | None] | None:
        return input_projection(block, "attn", metric)


def add_branch(block: Any, x: Tensor, branch: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """``x`` and a branch of it and the images in it, with the stochastic depth of the block.

    Above a rate of 0.1 some images skip the branch: it is not computed for them.
    """
    if not block.training or block.sample_drop_ratio <= 0.1:
        return x + block.drop_path1(branch(x, slice(None)))  # the first for both branches, as upstream
    images = torch.randperm(len(x), device=x.device)[: max(int(len(x) * (1 - block.sample_drop_ratio)), 1)]
    return x.index_add(0, images, branch(x[images], images).to(x.dtype), alpha=len(x) / len(images))


@reads(f"{DINO}.BlockChunk.forward")
def chunk(driver: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return [len(driver) - 1]


@reads(f"{DINO}.DinoVisionTransformer.forward_features")
def forward_features(trunk: Any, x: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    if isinstance(x, list):
        raise ValueError(
            "DINOv2 was given a list of crops, which it packs into one sequence without a grid. Run the crops one "
            "after the other, or call remove_algm first"
        )
    return [trunk.n_blocks - 1]


@reads(
    f"{DINO}.DinoVisionTransformer._get_intermediate_layers_not_chunked",
    f"{DINO}.DinoVisionTransformer._get_intermediate_layers_chunked",
)
def get_intermediate_layers(trunk: Any, x: Tensor, n: Any = 1) -> Iterable[int]:
    return range(trunk.n_blocks - n, trunk.n_blocks) if isinstance(n, int) else n


class ClipBlock(Adapter):
    projection = "conv1"

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.ls_2(block.mlp(block.ln_2(x)))


@register(f"{CLIP}.ResidualAttentionBlock.forward")
class ResidualAttentionBlock(ClipBlock):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, k_x: Any = None, v_x: Any = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        if k_x is not None or v_x is not None:
            raise ValueError("k_x, v_x: attention to tokens other than the image's own. Call remove_algm first")
        y, heads = block.ln_1(x), block.attn.num_heads
        if attn_mask is not None and tokens.token_map is not None:
            attn_mask = tokens.pair(by_head(attn_mask, heads)).expand(-1, heads, -1, -1).flatten(0, 1)
        if tokens.key_bias is None:
            y = block.attention(q_x=y, attn_mask=attn_mask)
        else:
            attn_mask = None if attn_mask is None else attn_mask.to(y.dtype)
            weights = tokens.key_bias[:, 0, 0]
            y, _ = block.attn(y, y, y, need_weights=False, key_padding_mask=weights, attn_mask=attn_mask)
        return x + block.ls_1(y)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        own = path_of(type(block).attention) == f"{CLIP}.ResidualAttentionBlock.attention"
        return own and is_own(block.attn, path_of(nn.MultiheadAttention.forward))

    @staticmethod
    def refusal(block: Any) -> str | None:
        return None if block.attn.batch_first else "the batch is not the first dimension of the tokens (batch_first)"


@register(f"{CLIP}.CustomResidualAttentionBlock.forward")
class CustomResidualAttentionBlock(ClipBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None and tokens.token_map is not None:
            attn_mask = by_head(attn_mask, block.attn.num_heads)
            if attn_mask.dtype == torch.bool:  # True: not attended to
                attn_mask = x.new_zeros(attn_mask.shape).masked_fill_(attn_mask, -torch.inf)
        y = block.attn(block.ln_1(x), attn_mask=tokens.attention_mask(attn_mask))
        return x + block.ls_1(block.ln_attn(y))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return is_own(block.attn, f"{CLIP}.Attention.forward")


def by_head(mask: Tensor, heads: int) -> Tensor:
    """[L, L] as it is, [B * heads, L, L] as [B, heads, L, L]."""
    return mask.unflatten(0, (-1, heads)) if mask.dim() == 3 else mask


@reads(f"{CLIP}.Transformer.forward", f"{CLIP}.CustomTransformer.forward")
def forward(driver: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return [len(driver.resblocks) - 1]


@reads(f"{CLIP}.Transformer.forward_intermediates", f"{CLIP}.CustomTransformer.forward_intermediates")
def forward_intermediates(
    driver: Any, x: Tensor, attn_mask: Any = None, indices: Any = None, stop_early: bool = False
) -> Iterable[int]:
    from timm.models._features import feature_take_indices  # of which open_clip's is a copy

    taken, last = feature_take_indices(len(driver.resblocks), indices)
    return [*taken, last if stop_early else len(driver.resblocks) - 1]
