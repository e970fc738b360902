"""The halves of a block on a batch, on packed images, or on one image after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..passes import LayerTokens
from ..tokens import TokenMap
from . import Adapter, features
from .packed import PackedAttention


def attention_half(
    adapter: type[Adapter], metric: str, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The adapter's attention half, and the features of its tokens that the metric names.

    Args:
        x: [B, L, D]; or [1, T, D], if images of different lengths are packed.
        args, kwargs: of the block's forward, for all images.

    Returns:
        Tokens like ``x``, features [B or 1, L or T, D'] or None: see :func:`features.attention_half`.
    """
    packing = tokens.packing
    if packing is None:
        return features.attention_half(adapter, metric, block, x, tokens, *args, **kwargs)
    if runs_packed(block) and adapter.packs(block, *args, **kwargs):
        with PackedAttention(packing, tokens.key_bias):
            return features.attention_half(adapter, metric, block, x, tokens.packed(), *args, **kwargs)
    if torch.compiler.is_compiling():  # it does not know how many tokens an image has
        y, seen = features.attention_half(adapter, metric, block, packing.unpack(x), tokens.padded(), *args, **kwargs)
        return packing.pack(y), None if seen is None else packing.pack(seen)
    each = [
        features.attention_half(adapter, metric, block, one, tokens.of_image(image), *args, **kwargs)
        for image, one in enumerate(packing.split(x))
    ]
    found = [seen for _, seen in each if seen is not None]
    return torch.cat([half for half, _ in each], 1), torch.cat(found, 1) if found else None


def mlp_half(adapter: type[Adapter], block: Any, x: Tensor, token_map: TokenMap | None) -> Tensor:
    """The adapter's MLP half of tokens [B, L, D], or [1, T, D] if the images are packed."""
    packing = None if token_map is None else token_map.packing
    if packing is None or runs_packed(block):
        return adapter.mlp_half(block, x)
    return torch.cat([adapter.mlp_half(block, one) for one in packing.split(x)], 1)


def runs_packed(block: Any) -> bool:
    """Whether images may go through a block as one: not where it drops some (stochastic depth)."""
    return not block.training
