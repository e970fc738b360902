"""Measure attention whose keys weigh as much as the tokens that they hold, by each kernel that can do it.

A part of suite.py. It compares, for attention [B, heads, L, 64] of merged tokens:
- the kernels that take a bias for each key, [B, 1, 1, L]: memory-efficient, cuDNN, and torch's own choice;
- extra dimensions that carry the bias inside the product, so that the flash kernel can be used: 1 in the queries, the
  bias / scale in the keys, padded to a multiple of 8 dimensions; in one part, or in two (the second is what rounding
  the first lost);
- flex attention with the bias as a modification of the scores, compiled.
And for images of different lengths, packed: one after the other, variable-length attention with the extra dimensions,
and padded attention with a bias.

Each is given as a ratio to attention without bias of as many tokens, and with its largest difference to float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..common.timing import calls_in_turns, median_ratio
from .attention_inputs import HEAD, Batch, Case, Packed
from .attention_packed import packed_candidates
from .attention_padded import NO_BIAS, candidates
from .exactness import in_a_line


def measure(case: Case, device: str, dtype: torch.dtype, rounds: int, compiled: bool = True) -> list[dict[str, Any]]:
    """Return a row for each candidate: its time, that as a ratio to attention without bias, and how exact it is.

    Args:
        compiled: try flex attention too, which only makes sense compiled.
    """
    torch.manual_seed(0)
    same, mixed = Batch.random(case, device, dtype), Packed.random(case, device, dtype)
    base = partial(scaled_dot_product_attention, *same.qkv)
    rows = compare(base, candidates(same, compiled), same.error, rounds)
    rows += compare(base, packed_candidates(mixed), mixed.error, rounds)
    where = {"case": case.name, "batch": case.batch, "heads": case.heads, "length": case.length}
    return [where | row for row in rows]


def compare(
    base: Callable[[], Tensor],
    runs: Mapping[str, Callable[[], Tensor]],
    error: Callable[[Tensor, bool], float],
    rounds: int,
) -> list[dict[str, Any]]:
    """Return a row for each run, against the base. One that raises has its error instead of a time.

    Args:
        error: returns the error of an output, with bias or without.
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
            rows[name]["error"] = in_a_line(failure)
    base()
    spent = calls_in_turns({"base": base, **working}, rounds)
    for name in working:
        rows[name]["seconds"] = statistics.median(spent[name])
        rows[name]["ratio"] = median_ratio(spent[name], spent["base"])
    return list(rows.values())


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    shape = f"[{row['batch']}, {row['heads']}, {row['length']}, {HEAD}]"
    if "error" in row:
        return f"{shape:20} {row['candidate']:48} {row['error']}"
    return (
        f"{shape:20} {row['candidate']:48}{1e3 * row['seconds']:9.3f} ms{row['ratio']:8.2f} ×   "
        f"{row['difference']:.1e} from float64"
    )
