"""Split the blocks of mmsegmentation's own plain ViTs: VisionTransformer, BEiT, MAE."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .adding_mlp import adds_identity
from .attention import why_unknown_attention
from .base import Adapter
from .beit_attention import attend_with_biases
from .registry import reads_blocks, register, structure
from .residual import checkpointed
from .structure import Structure

BACKBONES = "mmseg.models.backbones"


class MmsegBlock(Adapter):
    """Provide what is the same for both blocks."""

    projection = "patch_embed.projection"


@register(f"{BACKBONES}.vit.TransformerEncoderLayer.forward")
class TransformerEncoderLayer(MmsegBlock):
    """Split a block with torch's MultiheadAttention, which adds a float padding mask to the logits of each key."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens) -> Tensor:
        mask = {} if tokens.key_bias is None else {"key_padding_mask": tokens.key_bias[:, 0, 0]}
        return checkpointed(block, lambda x: block.attn(block.norm1(x), identity=x, **mask), x)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return checkpointed(block, lambda x: block.ffn(block.norm2(x), identity=x), x)

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, "mmcv.cnn.bricks.transformer.MultiheadAttention.forward")


@structure
class LikeTransformerEncoderLayer(TransformerEncoderLayer, Structure):
    """Split a copy of the same, whose attention and MLP take the residual and add it."""

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether attention takes a padding mask, and both halves the residual: see `Structure.fits`."""
        parts = [getattr(block, name, None) for name in ("norm1", "attn", "norm2", "ffn")]
        return all(isinstance(part, nn.Module) for part in parts) and (
            adds_identity(block.attn)
            and adds_identity(block.ffn)
            and "key_padding_mask" in inspect.signature(block.attn.forward).parameters
        )

    @staticmethod
    def refusal(block: Any) -> None:
        return None


@register(f"{BACKBONES}.beit.BEiTTransformerEncoderLayer.forward")
class BeitTransformerEncoderLayer(MmsegBlock):
    """Split a block whose attention adds relative position biases."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens) -> Tensor:
        y = block.norm1(x)
        y = block.attn(y) if tokens.token_map is None else attend_with_biases(block.attn, y, tokens, None)
        return x + block.drop_path(block.gamma_1 * y)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(block.gamma_2 * block.ffn(block.norm2(x)))

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, f"{BACKBONES}.beit.BEiTAttention.forward")


@reads_blocks(
    f"{BACKBONES}.vit.VisionTransformer.forward", f"{BACKBONES}.beit.BEiT.forward", f"{BACKBONES}.mae.MAE.forward"
)
def blocks_read(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int] | None:
    """Return the blocks whose output the trunk returns, and the last; None for SETR's trunk in its fork of mmseg."""
    if not hasattr(trunk, "layers"):
        return None
    return [*trunk.out_indices, len(trunk.layers) - 1]
