"""Split the blocks of the EVA-01 segmentation code, which ViT-Adapter shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .attention import why_unknown_attention
from .base import Adapter
from .beit_attention import attend_with_biases
from .features import input_projection
from .registry import reads_blocks, register
from .residual import checkpointed, layer_scale

BACKBONES = "mmseg_custom.models.backbones"
ATTENTION = tuple(f"{BACKBONES}.{file}.Attention.forward" for file in ("beit_baseline", "base.beit", "base.vit"))


class Eva01(Adapter):
    """Provide what is the same for all three blocks."""

    projection = "patch_embed.proj"

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, *ATTENTION)


@register(f"{BACKBONES}.beit_baseline.Block.forward")
class BaselineBlock(Eva01):
    """Split a block of EVA-01's BEiT, which is checkpointed from outside."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, rel_pos_bias: Tensor | None = None) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, rel_pos_bias, rel_pos_bias=rel_pos_bias)
        return x + block.drop_path(layer_scale(block.gamma_1, y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(layer_scale(block.gamma_2, block.mlp(block.norm2(x))))


@register(f"{BACKBONES}.base.beit.Block.forward")
class BeitBlock(Eva01):
    """Split a block of ViT-Adapter's BEiT, which checkpoints itself."""

    @staticmethod
    def attention_half(
        block: Any,
        x: Tensor,
        tokens: LayerTokens,
        H: int,  # noqa: N803
        W: int,  # noqa: N803
        rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        return checkpointed(block, lambda x: BaselineBlock.attention_half(block, x, tokens, rel_pos_bias), x)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return checkpointed(block, lambda x: BaselineBlock.mlp_half(block, x), x)


@register(f"{BACKBONES}.base.vit.Block.forward")
class VitBlock(Eva01):
    """Split a block of ViT-Adapter's ViT, which checkpoints itself."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, H: int, W: int) -> Tensor:  # noqa: N803
        def half(x: Tensor) -> Tensor:
            y = attend(block.attn, block.norm1(x), tokens, None, H, W)
            return x + block.drop_path(layer_scale(block.gamma1 if block.layer_scale else None, y))

        return checkpointed(block, half, x)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        def half(x: Tensor) -> Tensor:
            y = block.mlp(block.norm2(x))
            return x + block.drop_path(layer_scale(block.gamma2 if block.layer_scale else None, y))

        return checkpointed(block, half, x)

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        return input_projection(block, "attn", compare)


def attend(attention: Any, x: Tensor, tokens: LayerTokens, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """Call the attention itself with these arguments; or compute it from its parts where tokens are merged.

    Args:
        x: [B, L, D].
        bias: [heads, P+N, P+N] relative position bias that comes on top of the attention's own.
    """
    if tokens.token_map is None:
        return attention(x, *args, **kwargs)
    return attend_with_biases(attention, x, tokens, bias)


@reads_blocks(f"{BACKBONES}.beit_baseline.BEiTBaseline.forward_features")
def beit_blocks_read(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the blocks whose output the trunk returns."""
    return trunk.out_indices


@reads_blocks(f"{BACKBONES}.vit_baseline.ViTBaseline.forward_features")
def vit_blocks_read(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the blocks whose output the trunk returns."""
    return trunk.flags
