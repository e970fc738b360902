"""Segmenter (rstrudel/segmenter): its encoder's blocks and its decoders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..passes import LayerTokens
from . import Adapter, head, path_of, reads, register

MODEL = "segm.model"


@register(f"{MODEL}.blocks.Block.forward")
class Block(Adapter):
    projection = "patch_embed.proj"

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, mask: Any = None, return_attention: bool = False
    ) -> Tensor:
        if return_attention:
            raise ValueError(
                "return_attention=True: the attention map of a layer that merges, or comes after one, is not that of "
                "the image's patches. Call remove_algm first"
            )
        y = block.norm1(x)
        if tokens.token_map is not None and is_own(block.attn, f"{MODEL}.blocks.Attention.forward"):
            y = attend(block.attn, y, tokens.key_bias, block.attn.heads)  # which ignores ``mask``, as the original does
        else:
            y, _ = block.attn(y, tokens.attention_mask(mask))
        return x + block.drop_path(y)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(block.mlp(block.norm2(x)))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return is_own(block.attn, f"{MODEL}.blocks.Attention.forward")


@reads(f"{MODEL}.vit.VisionTransformer.forward")
def forward(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return [len(trunk.blocks) - 1]


head(f"{MODEL}.decoder.MaskTransformer.forward", "mask_norm")
head(f"{MODEL}.decoder.DecoderLinear.forward", "head")


def is_own(attention: nn.Module, *forwards: str) -> bool:
    """Whether an attention module computes what the function of one of these paths does, and nothing else."""
    return "forward" not in attention.__dict__ and path_of(type(attention).forward) in forwards


def attend(attention: Any, x: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Attention's own projections and dropout around fused attention, which takes the weights of merged keys.

    Args:
        attention: with ``qkv``, ``scale``, ``attn_drop`` (a module or a number), ``proj`` and ``proj_drop``.
        x: [B, L, D].
        bias: [B, 1, 1, L], added to the logits of each key.

    Returns:
        [B, L, D].

    Raises:
        ValueError: if hooks on ``attention`` wait for a call of it, which is not made.
    """
    if attention._forward_hooks or attention._forward_pre_hooks or attention._backward_hooks:
        raise ValueError(
            f"this {type(attention).__name__} has hooks, but with merged tokens ALGM computes attention around it, as "
            "its forward takes no mask. Put the hooks on its qkv or proj, or call remove_algm first"
        )
    q, k, v = attention.qkv(x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    drop = attention.attn_drop
    rate = drop.p * drop.training if isinstance(drop, nn.Dropout) else drop * attention.training
    y = scaled_dot_product_attention(q, k, v, bias, rate, scale=attention.scale)
    return attention.proj_drop(attention.proj(y.transpose(1, 2).flatten(2)))
