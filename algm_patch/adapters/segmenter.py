"""Split the blocks of Segmenter (rstrudel/segmenter), and register its decoders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .attention import attend, is_own
from .base import Adapter
from .features import input_projection
from .registry import reads_blocks, register, register_head

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

    @staticmethod
    def packs(block: Any, mask: Any = None, *args: Any, **kwargs: Any) -> bool:
        return Block.takes_mask(block)  # and ignores the mask

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        return input_projection(block, "attn", compare)


@reads_blocks(f"{MODEL}.vit.VisionTransformer.forward")
def last_block(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the last block, the only one that ``forward`` reads."""
    return [len(trunk.blocks) - 1]


register_head(f"{MODEL}.decoder.MaskTransformer.forward", "mask_norm")
register_head(f"{MODEL}.decoder.DecoderLinear.forward", "head")
