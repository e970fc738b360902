"""Split the blocks of timm's vision encoders of language models: Qwen3 (whose blocks are Eva's) and DeepSeek."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .registry import register
from .timm_parts import TimmBlock, attend
from .timm_trunks import register_trunk

QWEN = "timm.models.qwen3_vit"
DEEPSEEK = "timm.models.deepseek_vit"


@register(f"{DEEPSEEK}.DeepseekVitBlock.forward")
class DeepseekVitBlock(TimmBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, rope: Any = None) -> Tensor:
        return x + block.drop_path1(attend(block.attn, block.norm1(x), tokens, rope=rope))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.mlp(block.norm2(x)))


register_trunk(f"{QWEN}.Qwen3VitEncoder")
register_trunk(f"{DEEPSEEK}.DeepseekVitEncoder")
