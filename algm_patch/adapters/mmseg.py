"""mmsegmentation's own plain ViTs (VisionTransformer, BEiT, MAE) and their blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .base import Adapter
from .eva01 import attend, recomputed, why_unknown_attention
from .registry import reads, refuse, register
from .timm import WINDOWED

BACKBONES = "mmseg.models.backbones"


class MmsegBlock(Adapter):
    projection = "patch_embed.projection"


@register(f"{BACKBONES}.vit.TransformerEncoderLayer.forward")
class TransformerEncoderLayer(MmsegBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens) -> Tensor:
        # nn.MultiheadAttention adds a float padding mask to the logits of each key.
        mask = {} if tokens.key_bias is None else {"key_padding_mask": tokens.key_bias[:, 0, 0]}
        return recomputed(block, lambda x: block.attn(block.norm1(x), identity=x, **mask), x)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return recomputed(block, lambda x: block.ffn(block.norm2(x), identity=x), x)

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, "mmcv.cnn.bricks.transformer.MultiheadAttention.forward")


@register(f"{BACKBONES}.beit.BEiTTransformerEncoderLayer.forward")
class BeitTransformerEncoderLayer(MmsegBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens) -> Tensor:
        return x + block.drop_path(block.gamma_1 * attend(block.attn, block.norm1(x), tokens, None))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(block.gamma_2 * block.ffn(block.norm2(x)))

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, f"{BACKBONES}.beit.BEiTAttention.forward")


REDUCED = "its attention reduces the keys over a full grid, which merged tokens no longer form"
refuse(f"{BACKBONES}.swin.SwinBlock.forward", WINDOWED)
refuse(f"{BACKBONES}.twins.LSAEncoderLayer.forward", WINDOWED)
refuse(f"{BACKBONES}.twins.GSAEncoderLayer.forward", REDUCED)
refuse(f"{BACKBONES}.mit.TransformerEncoderLayer.forward", REDUCED)


@reads(f"{BACKBONES}.vit.VisionTransformer.forward", f"{BACKBONES}.beit.BEiT.forward", f"{BACKBONES}.mae.MAE.forward")
def forward(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return [*trunk.out_indices, len(trunk.layers) - 1]
