"""Define candidates for attention of images of the same length, whose keys have a bias."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from algm_patch.core.alignment import in_aligned_rows
from algm_patch.patching.weighted_attention import MULTIPLE, as_mask, with_bias

from .attention_inputs import SCALE, Batch

NO_BIAS = "no bias"


def candidates(batch: Batch, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Return by name functions that return attention [B, heads, L, 64]."""
    query, key, value = batch.qkv
    bias = batch.sizes.log()[:, None, None].to(query.dtype)
    aligned = in_aligned_rows(bias)
    attend = partial(scaled_dot_product_attention, query, key, value)
    runs: dict[str, Callable[[], Tensor]] = {
        NO_BIAS: attend,
        "bias": partial(attend, bias),
        "bias, aligned": partial(attend, aligned),
    }
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        runs[f"bias, {label(kernel)}"] = by_kernel(kernel, partial(attend, bias))
        runs[f"bias, aligned, {label(kernel)}"] = by_kernel(kernel, partial(attend, aligned))
    log_sizes = batch.sizes.log()
    runs["no bias where sizes are equal"] = partial(by_pair_correction, query, key, value, log_sizes, SCALE)
    runs["sizes among the values"] = partial(by_values, query, key, value, log_sizes, SCALE)
    for parts in (1, 2):
        run = partial(by_extra_dimensions, query, key, value, log_sizes, SCALE, parts)
        runs[f"extra dimensions, {parts} in use"] = run
        for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            runs[f"extra dimensions, {parts} in use, {label(kernel)}"] = by_kernel(kernel, run)
    if compiled:
        runs["flex attention"] = flex_attention(query, key, value, batch.sizes.log())
    return runs


def label(kernel: SDPBackend) -> str:
    """Return the name of a kernel."""
    name: str = kernel.name
    return name.removesuffix("_ATTENTION").lower()


def by_kernel(kernel: SDPBackend, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that runs the same by this kernel or not at all."""

    def forced() -> Tensor:
        with sdpa_kernel(kernel):
            return run()

    return forced


def by_extra_dimensions(
    query: Tensor, key: Tensor, value: Tensor, log_sizes: Tensor, scale: float, parts: int
) -> Tensor:
    """Attend with the bias [B, L] in extra dimensions of the keys."""
    wider = with_bias(query, key, value, log_sizes / scale, parts)
    return scaled_dot_product_attention(*wider, scale=scale)[..., : value.shape[3]]


def by_pair_correction(query: Tensor, key: Tensor, value: Tensor, log_sizes: Tensor, scale: float) -> Tensor:
    """Attend without the bias [B, L] where in each image all sizes are equal: a bias that all share has no effect.

    It waits for the device.
    """
    spread = log_sizes.amax(1) - log_sizes.amin(1)
    bias = None if spread.amax() == 0 else as_mask(log_sizes[:, None, None], query.dtype)
    return scaled_dot_product_attention(query, key, value, bias, scale=scale)


def by_values(query: Tensor, key: Tensor, value: Tensor, log_sizes: Tensor, scale: float) -> Tensor:
    """Attend without bias to values times sizes and to the sizes, and divide: only the values are wider."""
    sizes = log_sizes.exp()[:, None, :, None].expand(*value.shape[:3], 1)
    wider = pad(torch.cat([value * sizes, sizes], 3).to(value.dtype), (0, MULTIPLE - 1))
    y = scaled_dot_product_attention(query, key, wider, scale=scale)
    width = value.shape[3]
    return y[..., :width] / y[..., width : width + 1]


def flex_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """Return compiled flex attention [B, heads, L, 64] with a bias [B, L] of each key."""
    from torch.nn.attention import flex_attention

    def add_bias(score: Tensor, image: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[image, k]

    compiled = torch.compile(flex_attention.flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(query, key, value, score_mod=add_bias)
