"""Attend in images of any lengths by one call of a kernel."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..core.alike import of_rows
from ..core.packing import Packing

varlen_attn: Any = None
if find_spec("torch.nn.attention.varlen"):  # torch 2.10; its scale later
    from torch.nn.attention import varlen

    if "scale" in inspect.signature(varlen.varlen_attn).parameters:
        varlen_attn = varlen.varlen_attn

HALF = (torch.float16, torch.bfloat16)
HOPPER = (9, 0)


def takes_bias(x: Tensor) -> bool:
    """Return whether attention of such tensors is faster with a bias and a little padding than without.

    On Hopper GPUs it is: ``packed: in groups of like length`` against ``packed: variable length, extra dimensions`` in
    the table of attention kernels that ``python -m benchmarks.gpu.suite`` prints.
    """
    return x.is_cuda and x.dtype in HALF and torch.cuda.get_device_capability(x.device) >= HOPPER


def in_groups(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, key_bias: Tensor, scale: float | None
) -> Tensor:
    """Return attention [1, T, heads, D] of packed images, computed on those of like length as a batch.

    Args:
        key_bias: [B, 1, 1, M]; minus infinity past an image's own tokens: no one attends to padding.
    """
    groups = packing.groups
    outputs = []
    for each, bias in zip(groups.groups, groups.biases(key_bias), strict=True):
        # By their first dimension: on an H100, rows of a later one take twice as long to collect.
        q, k, v = (of_rows(x[0].transpose(0, 1), each.rows).transpose(1, 2) for x in (query, key, value))
        y = scaled_dot_product_attention(q, k, v, bias.to(q.dtype), scale=scale)
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return together.index_select(0, groups.back)[None]


def has_kernel(x: Tensor) -> bool:
    """Return whether torch has attention of variable lengths for such tensors: in half precision on CUDA."""
    return (
        x.is_cuda
        and x.dtype in HALF
        and varlen_attn is not None
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def in_one_call(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, key_bias: Tensor | None, scale: float | None
) -> Tensor:
    """Return the same in one call. The kernel takes no bias: two further dimensions carry it inside the product."""
    width = value.shape[3]
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if key_bias is not None:
        query, key, value = with_bias(query, key, value, packing.pack(key_bias[:, 0, 0]) / scale)
    ends = torch.nn.functional.pad(packing.counts.cumsum(0), (1, 0)).to(torch.int32)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attn(q, k, v, ends, ends, packing.longest, packing.longest, scale=scale)[None, ..., :width]


def with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [1, heads, T, D'] whose product is larger by ``bias`` [1, T] of each key.

    Twice 1 in the queries; in the keys the bias and what half precision loses of it; zeros to a multiple of eight.
    """
    high = bias.to(key.dtype)
    low = (bias - high).to(key.dtype)
    more = 2 + -(query.shape[3] + 2) % 8
    ones, zeros = query.new_ones(*query.shape[:3], 2), query.new_zeros(*query.shape[:3], more - 2)
    both = torch.stack([high, low], -1)[:, None].expand(*key.shape[:3], 2)
    return (
        torch.cat([query, ones, zeros], 3),
        torch.cat([key, both, zeros], 3),
        torch.nn.functional.pad(value, (0, more)),
    )
