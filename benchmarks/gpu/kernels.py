"""Attention whose keys weigh as much as the tokens that they hold: what each kernel takes for it, and how exact it is.

A part of gpu.py. What it compares, for attention [B, heads, L, 64] of merged tokens:
- the kernels that take a bias for each key, [B, 1, 1, L]: memory-efficient, cuDNN, and torch's own choice;
- extra dimensions that carry the bias inside the product, so that the flash kernel can be used: 1 in the queries, the
  bias / scale in the keys, padded to a multiple of 8 dimensions; in one part, or in two (what rounding the first part
  lost is the second);
- flex attention with the bias as a modification of the scores, compiled.
And for images of different lengths, packed: one after the other, variable-length attention with the extra dimensions,
and padded attention with a bias.

Each as a ratio to attention without bias of as many tokens, and with its largest difference to float64.
"""

from __future__ import annotations

import math
import operator
import random
import statistics
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from overhead import seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as attend

from algm_patch.core.packing import Packing

HEAD = 64
SCALE = HEAD**-0.5
# A kernel takes head dimensions that are multiples of this, and a bias whose rows start at multiples of ALIGNED.
EXTRA, ALIGNED = 8, 16
# A turn lasts at least so many seconds, as far as MOST_CALLS get it there: back to back, launches overlap.
TURN, MOST_CALLS = 0.05, 100
NO_BIAS = "no bias"

Runs = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """Attention of a network's merged tokens: ``length`` of each image, or on average."""

    name: str
    batch: int
    heads: int
    length: int


# -- measuring


def measured(
    case: Case, device: str, dtype: torch.dtype, rounds: int, compiled: bool = True
) -> list[dict[str, str | float]]:
    """A row for each candidate: its time, that as a ratio to attention without bias, and how exact it is.

    Args:
        compiled: try flex attention too, which only makes sense compiled.
    """
    torch.manual_seed(0)
    same, mixed = Batch.random(case, device, dtype), Packed.random(case, device, dtype)
    base = partial(attend, *same.qkv)
    rows = compared(base, candidates(same, compiled), same.error, rounds)
    rows += compared(base, packed_candidates(mixed), mixed.error, rounds)
    where = {"case": case.name, "batch": case.batch, "heads": case.heads, "length": case.length}
    return [where | row for row in rows]


def compared(
    base: Callable[[], Tensor], runs: Runs, error: Callable[[Tensor, bool], float], rounds: int
) -> list[dict[str, Any]]:
    """A row for each run, against the base. One that raises has its error instead of a time.

    Args:
        error: of an output, with bias or without.
    """
    rows: dict[str, dict[str, Any]] = {name: {"candidate": name} for name in runs}
    working = {}
    for name, run in runs.items():
        try:
            for _ in range(3):  # warm up
                output = run()
            rows[name]["difference"] = error(output, not name.endswith(NO_BIAS))
            working[name] = run
        except Exception as failure:
            rows[name]["error"] = said(failure)
    base()
    spent = in_turns({"base": base, **working}, rounds)
    for name in working:
        rows[name]["seconds"] = statistics.median(spent[name])
        rows[name]["ratio"] = statistics.median(map(operator.truediv, spent[name], spent["base"]))
    return list(rows.values())


def in_turns(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each, in each round; in a new order every round. Short ones are called back to back."""
    calls = {name: min(MOST_CALLS, math.ceil(TURN / per_call(run, 1))) for name, run in runs.items()}
    order = random.Random(0)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            spent[name].append(per_call(runs[name], calls[name]))
    return spent


def per_call(run: Callable[[], Any], calls: int) -> float:
    def all_calls(count: int) -> None:
        for _ in range(count):
            run()

    return seconds(all_calls, calls) / calls


def said(error: BaseException) -> str:
    """What an error is and says, in a line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")


# -- images of the same length


@dataclass(frozen=True)
class Batch:
    """Queries, keys and values [B, heads, L, 64] as a projection of all three leaves them; sizes [B, L]."""

    qkv: tuple[Tensor, Tensor, Tensor]
    sizes: Tensor

    @classmethod
    def random(cls, case: Case, device: str, dtype: torch.dtype) -> Batch:
        qkv = torch.randn(case.batch, case.length, 3, case.heads, HEAD, device=device, dtype=dtype)
        sizes = torch.randint(1, 9, (case.batch, case.length), device=device)
        return cls(qkv.permute(2, 0, 3, 1, 4).unbind(0), sizes)

    def error(self, output: Tensor, biased: bool) -> float:
        """Largest difference of an output's first image to float64."""
        query, key, value = (x[0] for x in self.qkv)
        return (output[0].double() - exact(query, key, value, self.sizes[0] if biased else None)).abs().max().item()


def exact(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None) -> Tensor:
    """Attention [heads, L, 64] of one image, in float64."""
    logits = query.double() @ key.double().mT * SCALE
    if sizes is not None:
        logits = logits + sizes.double().log()
    return logits.softmax(-1) @ value.double()


def candidates(batch: Batch, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    query, key, value = batch.qkv
    bias = batch.sizes.log()[:, None, None].to(query.dtype)
    length = bias.shape[-1]
    aligned = pad(bias, (0, -length % ALIGNED))[..., :length]
    runs: dict[str, Callable[[], Tensor]] = {
        NO_BIAS: partial(attend, query, key, value),
        "bias": partial(attend, query, key, value, bias),
        "bias, aligned": partial(attend, query, key, value, aligned),
    }
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        runs[f"bias, {label(kernel)}"] = by(kernel, partial(attend, query, key, value, bias))
        runs[f"bias, aligned, {label(kernel)}"] = by(kernel, partial(attend, query, key, value, aligned))
    for parts in (1, 2):
        extra = key_dimensions(batch.sizes, query.dtype, parts)[:, None]
        run = partial(attend_widened, query, key, value, extra, parts)
        runs[f"extra dimensions, {parts} in use"] = run
        for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            runs[f"extra dimensions, {parts} in use, {label(kernel)}"] = by(kernel, run)
    if compiled:
        runs["flex attention"] = flex(query, key, value, batch.sizes.log())
    return runs


def label(kernel: SDPBackend) -> str:
    return kernel.name.removesuffix("_ATTENTION").lower()


def by(kernel: SDPBackend, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same, by this kernel or not at all."""

    def forced() -> Tensor:
        with sdpa_kernel(kernel):
            return run()

    return forced


def key_dimensions(sizes: Tensor, dtype: torch.dtype, parts: int) -> Tensor:
    """[..., L, 8]: what keys of these sizes [..., L] have in the extra dimensions, of which so many are in use."""
    bias = sizes.double().log() / SCALE
    high = bias.to(dtype)
    used = torch.stack([high, (bias - high.double()).to(dtype)][:parts], -1)
    return pad(used, (0, EXTRA - parts))


def attend_widened(query: Tensor, key: Tensor, value: Tensor, extra: Tensor, parts: int) -> Tensor:
    """Attention [B, heads, L, 64] with the bias in extra dimensions [B, 1, L, 8] of the keys."""
    return attend(*widened(query, key, value, extra, parts), scale=SCALE)[..., :HEAD]


def widened(query: Tensor, key: Tensor, value: Tensor, extra: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., 72] of [..., 64]. Values too: a kernel takes one head dimension for all three."""
    ones = pad(query.new_ones(parts), (0, EXTRA - parts))
    shape = (*query.shape[:-1], EXTRA)
    return (
        torch.cat([query, ones.expand(shape)], -1),
        torch.cat([key, extra.expand(shape)], -1),
        pad(value, (0, EXTRA)),
    )


def flex(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """Compiled flex attention [B, heads, L, 64] with a bias [B, L] of each key."""
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, image: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[image, k]

    run = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: run(query, key, value, score_mod=add_bias)


# -- images of different lengths, packed


@dataclass(frozen=True)
class Packed:
    """Queries, keys and values [T, heads, 64] of all images; sizes [B, M], zero past an image's own tokens."""

    qkv: tuple[Tensor, Tensor, Tensor]
    sizes: Tensor
    packing: Packing

    @classmethod
    def random(cls, case: Case, device: str, dtype: torch.dtype) -> Packed:
        """Lengths from three quarters to five quarters of the case's, and in sum the same."""
        spread = torch.linspace(0.75, 1.25, case.batch) if case.batch > 1 else torch.ones(1)
        counts = (spread * case.length).round().long()
        lengths = tuple(counts.tolist())
        packing = Packing(counts.to(device), max(lengths), sum(lengths), lengths)
        qkv = torch.randn(packing.total, 3, case.heads, HEAD, device=device, dtype=dtype)
        sizes = torch.randint(1, 9, (case.batch, packing.longest), device=device)
        own = torch.arange(packing.longest, device=device) < packing.counts[:, None]
        return cls(qkv.unbind(1), sizes * own, packing)

    def error(self, output: Tensor, biased: bool) -> float:
        """Largest difference of the first image's output [T, heads, 64] to float64."""
        length = self.packing.lengths[0]
        query, key, value = (x[:length].transpose(0, 1) for x in self.qkv)
        expected = exact(query, key, value, self.sizes[0, :length] if biased else None).transpose(0, 1)
        return (output[:length].double() - expected).abs().max().item()


def packed_candidates(packed: Packed) -> dict[str, Callable[[], Tensor]]:
    """Of outputs [T, heads, 64]."""
    query, key, value = packed.qkv
    packing = packed.packing
    bias = packed.sizes.log()[:, None, None].to(query.dtype)
    ends = pad(packing.counts.cumsum(0), (1, 0)).int()
    runs: dict[str, Callable[[], Tensor]] = {
        "packed: one image after the other": partial(one_by_one, query, key, value, bias, packing),
        "packed: padded, with bias": partial(padded, query, key, value, bias, packing),
    }
    extra = packing.pack(key_dimensions(packed.sizes.clamp(min=1), query.dtype, 2))[0][:, None]
    plain = partial(variable_length, query, key, value, ends, packing)
    biased = partial(variable_length_widened, query, key, value, extra, ends, packing)
    for kernel in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        name = "packed: variable length, " + (f"{label(kernel)}, " if kernel else "")
        runs[f"{name}{NO_BIAS}"] = by(kernel, plain) if kernel else plain
        runs[f"{name}extra dimensions"] = by(kernel, biased) if kernel else biased
    return runs


def one_by_one(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    parts = zip(*(packing.split(x.transpose(0, 1)[None], 2) for x in (query, key, value)), strict=True)
    outputs = [
        attend(q, k, v, bias[image : image + 1, ..., : k.shape[2]])[0].transpose(0, 1)
        for image, (q, k, v) in enumerate(parts)
    ]
    return torch.cat(outputs)


def padded(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, packing: Packing) -> Tensor:
    query, key, value = (packing.unpack(x[None]).transpose(1, 2) for x in (query, key, value))
    return packing.pack(attend(query, key, value, bias).transpose(1, 2))[0]


def variable_length(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, packing: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # of torch 2.10

    return varlen_attn(query, key, value, ends, ends, packing.longest, packing.longest, scale=SCALE)


def variable_length_widened(
    query: Tensor, key: Tensor, value: Tensor, extra: Tensor, ends: Tensor, packing: Packing
) -> Tensor:
    return variable_length(*widened(query, key, value, extra, 2), ends, packing)[..., :HEAD]


# -- what is printed


def line(row: dict[str, Any]) -> str:
    shape = f"[{row['batch']}, {row['heads']}, {row['length']}, {HEAD}]"
    if "error" in row:
        return f"{shape:20} {row['candidate']:48} {row['error']}"
    return (
        f"{shape:20} {row['candidate']:48}{1e3 * row['seconds']:9.3f} ms{row['ratio']:8.2f} ×   "
        f"{row['difference']:.1e} from float64"
    )
