"""Attention of several images in one sequence: each token attends to its own image's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..core.matching import full_precision
from ..core.packing import Packing
from .weighted_attention import chosen


class PackedAttention(TorchFunctionMode):
    """Make ``scaled_dot_product_attention`` of a packed sequence that of each image, in the body of a ``with``.

    So that attention of any library, its norms, rotary angles and projections, runs on all images at once as it is.

    Args:
        packing: of the sequence.
        key_bias: [B, 1, 1, M], added to the logits of each image's keys; None: nothing.

    Attributes:
        used: whether it was called; if not, images may have attended to each other.
    """

    def __init__(self, packing: Packing, key_bias: Tensor | None) -> None:
        super().__init__()
        self.packing, self.key_bias, self.used = packing, key_bias, False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            self.used = True
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
    """Return attention [1, heads, T, D] of each image in a packed sequence.

    Raises:
        ValueError: if there is a mask, which would be one between all tokens of all images, or dropout.
    """
    if attn_mask is not None or is_causal or dropout_p:
        raise ValueError(
            "attention of packed images was given a mask or dropout, which Adapter.packs had said it would not be"
        )
    if torch.compiler.is_compiling():
        y = opaque(query, key, value, packing.counts, packing.longest, key_bias, scale)
    else:
        y = chosen(query, key, key_bias)(query, key, value, packing, key_bias, scale)
    return y.transpose(1, 2)


# -- what a compiler calls without looking into it: it does not know how many tokens an image has


@torch.library.custom_op("algm_patch::packed_attention", mutates_args=())
def opaque(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: Tensor,
    longest: int,
    key_bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    packing = Packing(counts, longest, query.shape[2])
    return chosen(query, key, key_bias)(query, key, value, packing, key_bias, scale).contiguous()


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
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = counts.tolist()
    scale = query.shape[3] ** -0.5 if scale is None else scale
    parts = (x.split(lengths, 2) for x in (gradient.transpose(1, 2), query, key, value))
    found = []
    for image, (g, q, k, v) in enumerate(zip(*parts, strict=True)):
        bias = 0.0 if key_bias is None else key_bias[image : image + 1, ..., : k.shape[2]]
        found.append(gradients_of_one(g, q, k, v, bias, scale))
    one, two, three = (torch.cat(images, 2) for images in zip(*found, strict=True))
    return one.to(query), two.to(key), three.to(value)


def gradients_of_one(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``softmax(q k^T scale + bias) v``, [1, heads, m, D] each, from that of the output."""
    groups = q.shape[1] // k.shape[1]
    g, q, k, v = (full_precision(x) for x in (g, q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
    weights = (q @ k.mT * scale + bias).softmax(-1)
    through = g @ v.mT
    logits = weights * (through - (through * weights).sum(-1, keepdim=True)) * scale
    of_k, of_v = (x.unflatten(1, (-1, groups)).sum(2) for x in (logits.mT @ q, weights.mT @ g))
    return logits @ k, of_k, of_v


@opaque_backward.register_fake
def like_gradients(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def keep_inputs(ctx: Any, inputs: Any, output: Tensor) -> None:
    query, key, value, counts, _, key_bias, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, counts, key_bias)


def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients = opaque_backward(gradient, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None, None


opaque.register_autograd(backward, setup_context=keep_inputs)
