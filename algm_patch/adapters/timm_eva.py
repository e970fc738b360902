"""Split the blocks of timm's Eva, with rotary angles: EVA, EVA-02, DINOv3, Perception Encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .registry import register
from .residual import layer_scale
from .timm_parts import TimmBlock, attend
from .timm_trunks import register_trunk

EVA = "timm.models.eva"


@register(f"{EVA}.EvaBlock.forward")
class EvaBlock(TimmBlock):
    """Split a block that norms its tokens before attention and MLP."""

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, rope: Any = None, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, attn_mask, is_causal, rope)
        return x + block.drop_path1(layer_scale(block.gamma_1, y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(layer_scale(block.gamma_2, block.mlp(block.norm2(x))))


@register(f"{EVA}.EvaBlockPostNorm.forward")
class EvaBlockPostNorm(TimmBlock):
    """Split a block that norms what attention and MLP return."""

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, rope: Any = None, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, x, tokens, attn_mask, is_causal, rope)
        return x + block.drop_path1(block.norm1(y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.norm2(block.mlp(x)))


register_trunk(f"{EVA}.Eva")
