"""Split the blocks of timm's Gemma 4 vision encoder, which norm tokens before and after attention and MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .attention import is_own
from .base import Adapter
from .registry import register
from .timm_naflex import naflex_grid
from .timm_trunks import register_trunk

GEMMA = "timm.models.gemma4_vit"


@register(f"{GEMMA}.Gemma4Block.forward")
class Gemma4Block(Adapter):
    projection = "patch_embed"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "input_proj")

    @staticmethod
    def grid(projection: Any, output: Any, x: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return (H, W) of the patches from the columns and rows that Gemma4PatchEmbed leaves."""
        _, places, padding = output
        return naflex_grid(projection, x, places.flip(-1), None if padding is None else ~padding)

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        unturned = torch.stack([torch.ones_like(rope_cos[0, 0]), torch.zeros_like(rope_sin[0, 0])])
        angles = torch.stack([rope_cos, rope_sin], 1)  # [B, 2, N, D]
        cosine, sine = tokens.average_patches(angles, batched=True, neutral=unturned).unbind(1)
        y = block.attn(block.norm1(x), cosine, sine, attn_mask=tokens.attention_mask(attn_mask))
        return x + block.drop_path(block.norm2(y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path(block.norm4(block.mlp(block.norm3(x))))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return is_own(block.attn, f"{GEMMA}.Gemma4Attention.forward")

    @staticmethod
    def packs(block: Any, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None) -> bool:
        return attn_mask is None and Gemma4Block.takes_mask(block) and block.attn.fused_attn

    @staticmethod
    def position_cost(trunk: Any, grid: tuple[int, int]) -> int:
        """Return the operations of looking up columns and rows, by a product with each table."""
        return 2 * grid[0] * grid[1] * trunk.patch_embed.position_embedding_table.numel()


register_trunk(f"{GEMMA}.Gemma4VitEncoder")
