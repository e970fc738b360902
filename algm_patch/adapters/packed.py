"""Attention of several images in one sequence: each token attends to its own image's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..packing import Packing


class PackedAttention(TorchFunctionMode):
    """Within, ``scaled_dot_product_attention`` of the packed sequence is that of each image.

    So that attention of any library, its norms, rotary angles and projections, runs on all images at once as it is.

    Args:
        packing: of the sequence.
        key_bias: [B, 1, 1, M], added to the logits of each image's keys; None: nothing.
    """

    def __init__(self, packing: Packing, key_bias: Tensor | None) -> None:
        super().__init__()
        self.packing, self.key_bias = packing, key_bias

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            return attention(self.packing, self.key_bias, *args, **kwargs or {})
        return function(*args, **kwargs or {})


def attention(
    packing: Packing,
    key_bias: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Attention [1, heads, T, D] of each image in a packed sequence.

    Raises:
        ValueError: if there is a mask, which would be one between all tokens of all images.
    """
    if attn_mask is not None or is_causal:
        raise ValueError("a mask of its own, in attention that Adapter.packs says may run on packed images")
    parts = zip(*(packing.split(x, 2) for x in (query, key, value)), strict=True)
    outputs = []
    for image, (q, k, v) in enumerate(parts):
        bias = None if key_bias is None else key_bias[image : image + 1, ..., : k.shape[2]]
        outputs.append(scaled_dot_product_attention(q, k, v, bias, dropout_p, **kwargs).transpose(1, 2))
    return torch.cat(outputs, 1).transpose(1, 2)
