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
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention [1, heads, T, D] of each image in a packed sequence.

    Raises:
        ValueError: if there is a mask, which would be one between all tokens of all images, or dropout.
    """
    if attn_mask is not None or is_causal or dropout_p:
        raise ValueError(
            "attention of packed images was given a mask or dropout, which Adapter.packs had said it would not be"
        )
    if torch.compiler.is_compiling():
        y = opaque(query, key, value, packing.counts, key_bias, scale, enable_gqa)
    else:
        y = image_by_image(query, key, value, packing.lengths, key_bias, scale, enable_gqa)
    return y.transpose(1, 2)


def image_by_image(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    key_bias: Tensor | None,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """[1, T, heads, D]: fused attention of each image, which has so many tokens of the [1, heads, T, D]."""
    parts = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    outputs = []
    for image, (q, k, v) in enumerate(parts):
        bias = None if key_bias is None else key_bias[image : image + 1, ..., : k.shape[2]]
        y = scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=enable_gqa)
        outputs.append(y.transpose(1, 2))
    return torch.cat(outputs, 1)


# -- what a compiler calls without looking into it: it does not know how many tokens an image has


@torch.library.custom_op("algm_patch::packed_attention", mutates_args=())
def opaque(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: Tensor,
    key_bias: Tensor | None,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    return image_by_image(query, key, value, counts.tolist(), key_bias, scale, enable_gqa)


@opaque.register_fake
def like_output(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[3])


@torch.library.custom_op("algm_patch::packed_attention_backward", mutates_args=())
def opaque_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: Tensor,
    key_bias: Tensor | None,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in (query, key, value))
    with torch.enable_grad():
        output = image_by_image(q, k, v, counts.tolist(), key_bias, scale, enable_gqa)
    q, k, v = torch.autograd.grad(output, (q, k, v), gradient)
    return q.contiguous(), k.contiguous(), v.contiguous()


@opaque_backward.register_fake
def like_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def keep_inputs(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.scale, ctx.enable_gqa = inputs[5], inputs[6]


def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *opaque_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.enable_gqa), None, None, None, None


opaque.register_autograd(backward, setup_context=keep_inputs)
