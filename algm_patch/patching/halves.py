"""The halves of a block on a batch of images, also where they hold different numbers of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapters import features
from ..adapters.base import Adapter
from ..core.layer_tokens import LayerTokens
from ..core.token_map import TokenMap
from .packed_attention import PackedAttention


def attention_half(
    adapter: type[Adapter], metric: str, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The adapter's attention half, and the features of its tokens that the metric names.

    Images of different lengths go through it packed, if it can take them so; else padded in training, for what a block
    does to some images of a batch and not to others (stochastic depth), and where a compiler traces, which does not
    know the lengths; else one after the other, which spares the padding.

    Args:
        x: [B, L, D]; or [1, T, D], if images of different lengths are packed.
        args, kwargs: of the block's forward, for all images.

    Returns:
        Tokens like ``x``, features [B or 1, L or T, D'] or None: see :func:`features.attention_half`.
    """
    packing = tokens.packing
    if packing is None:
        return features.attention_half(adapter, metric, block, x, tokens, *args, **kwargs)
    if not block.training and adapter.packs(block, *args, **kwargs):
        mode = PackedAttention(packing, tokens.key_bias)
        with mode:
            half = features.attention_half(adapter, metric, block, x, tokens.packed(), *args, **kwargs)
        if not mode.used:
            raise ValueError(
                f"batch='image': attention of {type(block).__name__} was given packed images and computed them without "
                "scaled_dot_product_attention, or in a compiler that does not see where an image ends (torch before "
                "2.6). Set model.algm.batch = 'min'"
            )
        return half
    if (block.training or torch.compiler.is_compiling()) and adapter.takes_mask(block):
        y, seen = features.attention_half(adapter, metric, block, packing.unpack(x), tokens.padded(), *args, **kwargs)
        return packing.pack(y), None if seen is None else packing.pack(seen)
    each = [
        features.attention_half(adapter, metric, block, one, tokens.of_image(image), *args, **kwargs)
        for image, one in enumerate(packing.split(x))
    ]
    found = [seen for _, seen in each if seen is not None]
    return torch.cat([half for half, _ in each], 1), torch.cat(found, 1) if found else None


def mlp_half(adapter: type[Adapter], block: Any, x: Tensor, token_map: TokenMap | None) -> Tensor:
    """The adapter's MLP half of tokens [B, L, D]; or [1, T, D], if images of different lengths are packed."""
    packing = None if token_map is None else token_map.packing
    if packing is None or not block.training:
        return adapter.mlp_half(block, x)
    return packing.pack(adapter.mlp_half(block, packing.unpack(x)))
