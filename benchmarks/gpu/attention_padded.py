"""Define candidates for attention of images of the same length, whose keys have a bias."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from algm_patch.core.alignment import in_aligned_rows

from .attention_inputs import HEAD, SCALE, Batch, Triple

# A kernel takes head dimensions that are multiples of this.
EXTRA = 8
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
    for parts in (1, 2):
        extra = key_dimensions(batch.sizes, query.dtype, parts)[:, None]
        run = partial(attend_widened, query, key, value, extra, parts)
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


def key_dimensions(sizes: Tensor, dtype: torch.dtype, parts: int) -> Tensor:
    """Return the extra dimensions [..., L, 8] of keys of these sizes [..., L], the first ``parts`` in use."""
    bias = sizes.double().log() / SCALE
    high = bias.to(dtype)
    used = torch.stack([high, (bias - high.double()).to(dtype)][:parts], -1)
    return pad(used, (0, EXTRA - parts))


def attend_widened(query: Tensor, key: Tensor, value: Tensor, extra: Tensor, parts: int) -> Tensor:
    """Return attention [B, heads, L, 64] with the bias in extra dimensions [B, 1, L, 8] of the keys."""
    return scaled_dot_product_attention(*widened(query, key, value, extra, parts), scale=SCALE)[..., :HEAD]


def widened(query: Tensor, key: Tensor, value: Tensor, extra: Tensor, parts: int) -> Triple:
    """Return [..., 72] of [..., 64]. Values too: a kernel takes one head dimension for all three."""
    ones = pad(query.new_ones(parts), (0, EXTRA - parts))
    shape = (*query.shape[:-1], EXTRA)
    return (
        torch.cat([query, ones.expand(shape)], -1),
        torch.cat([key, extra.expand(shape)], -1),
        pad(value, (0, EXTRA)),
    )


def flex_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """Return compiled flex attention [B, heads, L, 64] with a bias [B, L] of each key."""
    from torch.nn.attention import flex_attention

    def add_bias(score: Tensor, image: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[image, k]

    compiled = torch.compile(flex_attention.flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(query, key, value, score_mod=add_bias)
