"""Run the halves of a block on images that hold different numbers of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapters.base import Adapter
from ..core.layer_tokens import LayerTokens
from ..core.packing import Packing
from .features import attention_half_and_features
from .packed_attention import PackedAttention


def packed_attention_half(
    adapter: type[Adapter], compare: str, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the adapter's attention half of packed images, and the features of their tokens that are compared.

    Images of different lengths go through it packed, if it can take them so; else padded in training, for what a block
    does to some images of a batch and not to others (stochastic depth), and where a compiler traces, which does not
    know the lengths; else one after the other, which spares the padding.

    Args:
        x: [1, T, D].
        args, kwargs: of the block's forward, for all images.

    Returns:
        Tokens [1, T, D], and features [1, T, D'] or None: see `attention_half_and_features`.
    """
    packing = tokens.packing
    assert packing is not None
    if not block.training and adapter.packs(block, *args, **kwargs):
        mode = PackedAttention(packing, tokens.key_bias)
        with mode:
            half = attention_half_and_features(adapter, compare, block, x, tokens.packed(), *args, **kwargs)
        if not mode.used:
            raise ValueError(
                f"batch='image': attention of {type(block).__name__} was given packed images and computed them without "
                "scaled_dot_product_attention, or in a compiler that does not see where an image ends (torch before "
                "2.6). Set model.algm.batch = 'min'"
            )
        return half
    if (block.training or torch.compiler.is_compiling()) and adapter.takes_mask(block):
        padded, own = packing.unpack(x), tokens.padded(x.dtype)
        y, features = attention_half_and_features(adapter, compare, block, padded, own, *args, **kwargs)
        return packing.pack(y), None if features is None else packing.pack(features)
    each = [
        attention_half_and_features(adapter, compare, block, one, tokens.of_image(image), *args, **kwargs)
        for image, one in enumerate(packing.split(x))
    ]
    found = [features for _, features in each if features is not None]
    return torch.cat([half for half, _ in each], 1), torch.cat(found, 1) if found else None


def padded_mlp_half(adapter: type[Adapter], block: Any, x: Tensor, packing: Packing) -> Tensor:
    """Return the adapter's MLP half of packed images [1, T, D], computed on them as a batch [B, M, D]."""
    return packing.pack(adapter.mlp_half(block, packing.unpack(x)))
