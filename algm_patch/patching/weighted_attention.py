"""Attention whose keys weigh as much as the tokens that they hold: the ways to compute it, and the choice of one.

In a batch, `as_mask` is the mask of attention. Of packed images `chosen` decides. All ways agree, to
rounding; ``python -m benchmarks.gpu.suite`` compares their times on a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..core.alignment import in_aligned_rows
from ..core.alike import of_rows
from ..core.packing import Packing

varlen_attn: Any = None
if find_spec("torch.nn.attention.varlen"):  # torch 2.10; its scale later
    from torch.nn.attention import varlen

    if "scale" in inspect.signature(varlen.varlen_attn).parameters:
        varlen_attn = varlen.varlen_attn

HALF = (torch.float16, torch.bfloat16)
AMPERE, HOPPER = (8, 0), (9, 0)
# Kernels take heads of a multiple of this width, and none wider than that.
MULTIPLE, WIDEST = 8, 256

# From query, key and value [1, heads, T, D] of packed images, their packing, a bias [B, 1, 1, M] or None (minus
# infinity past an image's own tokens) and a scale or None, to attention [1, T, heads, D].
Way = Callable[[Tensor, Tensor, Tensor, Packing, Tensor | None, float | None], Tensor]


def as_mask(log_sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias [B, 1, 1, L] of each key as a mask of attention of this dtype, laid out for its kernels."""
    mask = log_sizes.to(dtype)
    return in_aligned_rows(mask) if mask.is_cuda else mask


def chosen(query: Tensor, key: Tensor, key_bias: Tensor | None) -> Way:
    """Return how to compute attention of packed images with such queries, keys and bias.

    On Hopper GPUs a bias and a little padding are faster than a wider head without: ``packed: in groups of like
    length`` against ``packed: variable length, extra dimensions`` in the table of attention kernels. On a CPU the bias
    goes to each image: wider heads take longer.
    """
    capability = torch.cuda.get_device_capability(query.device) if query.is_cuda else (0, 0)
    if query.dtype not in HALF or query.shape[1] != key.shape[1]:
        return image_by_image
    if key_bias is not None and capability >= HOPPER:
        return in_groups
    width = query.shape[3] if key_bias is None else widened(query.shape[3], 2)
    if capability >= AMPERE and varlen_attn is not None and width <= WIDEST:
        return in_one_call
    return image_by_image


def image_by_image(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, key_bias: Tensor | None, scale: float | None
) -> Tensor:
    """Return attention of packed images, computed on one after the other: see `Way`."""
    parts = zip(*(packing.split(x, 2) for x in (query, key, value)), strict=True)
    outputs, grouped = [], query.shape[1] != key.shape[1]
    for image, (q, k, v) in enumerate(parts):
        bias = None if key_bias is None else key_bias[image : image + 1, ..., : k.shape[2]].to(q.dtype)
        y = scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=grouped)
        outputs.append(y.transpose(1, 2))
    return torch.cat(outputs, 1)


def in_groups(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, key_bias: Tensor | None, scale: float | None
) -> Tensor:
    """Return attention of packed images, computed on those of like length as a batch: see `Way`."""
    assert key_bias is not None  # which keeps padding out
    groups = packing.groups
    outputs = []
    for each, bias in zip(groups.groups, groups.biases(key_bias), strict=True):
        # By their first dimension: on an H100, rows of a later one take twice as long to collect.
        q, k, v = (of_rows(x[0].transpose(0, 1), each.rows).transpose(1, 2) for x in (query, key, value))
        y = scaled_dot_product_attention(q, k, v, bias.to(q.dtype), scale=scale)
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return together.index_select(0, groups.back)[None]


def in_one_call(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, key_bias: Tensor | None, scale: float | None
) -> Tensor:
    """Return attention of packed images in one call of a kernel that takes no bias: see `Way`, `with_bias`."""
    width = value.shape[3]
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if key_bias is not None:
        query, key, value = with_bias(query, key, value, packing.pack(key_bias[:, 0, 0]) / scale)
    ends = pad(packing.counts.cumsum(0), (1, 0)).to(torch.int32)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attn(q, k, v, ends, ends, packing.longest, packing.longest, scale=scale)[None, ..., :width]


def with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, parts: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [B, heads, L, D'] whose product is larger by ``bias`` [B, L] of each key.

    1 in further dimensions of the queries; in those of the keys the bias and, if of two parts, what rounding it to
    half precision loses; zeros to a multiple of eight. Values too: a kernel takes one width for all three.
    """
    high = bias.to(key.dtype)
    low = (bias - high).to(key.dtype)
    more = widened(query.shape[3], parts) - query.shape[3]
    ones, zeros = query.new_ones(*query.shape[:3], parts), query.new_zeros(*query.shape[:3], more - parts)
    biases = torch.stack([high, low][:parts], -1)[:, None].expand(*key.shape[:3], parts)
    return torch.cat([query, ones, zeros], 3), torch.cat([key, biases, zeros], 3), pad(value, (0, more))


def widened(width: int, parts: int) -> int:
    """Return the width of a head with so many further dimensions, to the next multiple that kernels take."""
    return width + parts + -(width + parts) % MULTIPLE
