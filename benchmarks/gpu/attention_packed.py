"""Define candidates for attention of images of different lengths, packed into one sequence, whose keys have a bias."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import pad, scaled_dot_product_attention

from algm_patch.core.alignment import in_aligned_rows
from algm_patch.core.packing import Packing
from algm_patch.patching.packed_kernels import in_groups

from .attention_inputs import HEAD, SCALE, Packed
from .attention_padded import NO_BIAS, by_kernel, key_dimensions, label, widened


def packed_candidates(packed: Packed) -> dict[str, Callable[[], Tensor]]:
    """Return by name functions that return attention [T, heads, 64]."""
    query, key, value = packed.qkv
    packing = packed.packing
    bias = in_aligned_rows(packed.sizes.log()[:, None, None].to(query.dtype))
    ends = pad(packing.counts.cumsum(0), (1, 0)).int()
    runs: dict[str, Callable[[], Tensor]] = {
        "packed: one image after the other": partial(one_by_one, query, key, value, bias, packing),
        "packed: padded, with bias": partial(padded, query, key, value, bias, packing),
        "packed: in groups of like length, with bias": partial(grouped, query, key, value, bias, packing),
    }
    extra = packing.pack(key_dimensions(packed.sizes.clamp(min=1), query.dtype, 2))[0][:, None]
    plain = partial(variable_length, query, key, value, ends, packing)
    biased = partial(variable_length_widened, query, key, value, extra, ends, packing)
    for kernel in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        name = "packed: variable length, " + (f"{label(kernel)}, " if kernel else "")
        runs[f"{name}{NO_BIAS}"] = by_kernel(kernel, plain) if kernel else plain
        runs[f"{name}extra dimensions"] = by_kernel(kernel, biased) if kernel else biased
    return runs


def one_by_one(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    """Attend in one image after the other."""
    parts = zip(*(packing.split(x.transpose(0, 1)[None], 2) for x in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, bias[image : image + 1, ..., : k.shape[2]])[0].transpose(0, 1)
        for image, (q, k, v) in enumerate(parts)
    ]
    return torch.cat(outputs)


def padded(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    """Attend in a padded batch."""
    query, key, value = (packing.spread(x[None]).transpose(1, 2) for x in (query, key, value))
    return packing.pack(scaled_dot_product_attention(query, key, value, bias).transpose(1, 2))[0]


def grouped(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    """Attend in padded batches of images of like length."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    return in_groups(query, key, value, packing, bias, SCALE)[0]


def variable_length(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, packing: Packing) -> Tensor:
    """Attend by a kernel that is told where images end."""
    from torch.nn.attention.varlen import varlen_attn  # since torch 2.10

    output: Any = varlen_attn(query, key, value, ends, ends, packing.longest, packing.longest, scale=SCALE)
    return output


def variable_length_widened(
    query: Tensor, key: Tensor, value: Tensor, extra: Tensor, ends: Tensor, packing: Packing
) -> Tensor:
    """Attend by the same kernel, with the bias in extra dimensions of the keys."""
    return variable_length(*widened(query, key, value, extra, 2), ends, packing)[..., :HEAD]
