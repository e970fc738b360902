"""Define candidates for attention of images of different lengths, packed into one sequence, whose keys have a bias."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from algm_patch.core.packing import Packing
from algm_patch.patching.weighted_attention import Way, as_mask, image_by_image, in_groups, in_one_call

from .attention_inputs import SCALE, Packed
from .attention_padded import NO_BIAS, by_kernel, label


def packed_candidates(packed: Packed) -> dict[str, Callable[[], Tensor]]:
    """Return by name functions that return attention [T, heads, 64]."""
    query, key, value = (x.transpose(0, 1)[None] for x in packed.qkv)
    bias = as_mask(packed.sizes.log()[:, None, None], packed.qkv[0].dtype)

    def run(way: Way, bias: Tensor | None = bias) -> Tensor:
        return way(query, key, value, packed.packing, bias, SCALE)[0]

    runs: dict[str, Callable[[], Tensor]] = {
        "packed: one image after the other": partial(run, image_by_image),
        "packed: padded, with bias": partial(run, padded),
        "packed: in groups of like length, with bias": partial(run, in_groups),
    }
    plain, biased = partial(run, in_one_call, None), partial(run, in_one_call)
    for kernel in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        name = "packed: variable length, " + (f"{label(kernel)}, " if kernel else "")
        runs[f"{name}{NO_BIAS}"] = by_kernel(kernel, plain) if kernel else plain
        runs[f"{name}extra dimensions"] = by_kernel(kernel, biased) if kernel else biased
    return runs


def padded(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, bias: Tensor | None, scale: float | None
) -> Tensor:
    """Attend in a padded batch: see `Way`."""
    q, k, v = (packing.spread(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
    return packing.pack(scaled_dot_product_attention(q, k, v, bias, scale=scale).transpose(1, 2))
