"""Measure the rows of each table."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..common.arguments import DTYPES
from ..common.gflops import gflops
from ..common.memory import peak_memory
from ..common.patching import twin
from ..common.stopwatch import PARTS, time_shares
from ..common.timing import calls_in_turns, median_ratio
from . import attention
from .attention_inputs import Case
from .exactness import count_synchronisations, float64_errors, in_a_line, relative_distance, under_conditions
from .methods import FIXED, THRESHOLDS, UNPATCHED, equal_method
from .networks import NETWORKS, Flops, build, patches_left, photographs

MODES = EAGER, COMPILED, GRAPHS = "eager", "compiled", "graphs"

Row = dict[str, Any]


def loaded(options: argparse.Namespace, name: str, batch: int, dtype: str | None = None) -> tuple[Any, Tensor]:
    """Return a network and its images."""
    model = build(NETWORKS[name], options.device, getattr(torch, dtype or options.dtype))
    return model, photographs(model, NETWORKS[name], batch)


def speed_rows(options: argparse.Namespace, name: str, mode: str, batch: int, methods: Sequence[str]) -> list[Row]:
    """Measure time, memory and GFLOPs of methods in a mode; one that fails has its error instead."""
    model, images = loaded(options, name, batch)
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for method_name in methods:
            row: Row = {"model": name, "mode": mode, "batch": batch, "method": method_name}
            rows[method_name] = row
            try:
                method = equal_method(method_name, model, NETWORKS[name], images)
                with method.patch(model):
                    work = gflops(model, images)
                row |= {"setting": method.setting, "gflops": work}
                row["ideal"] = Flops.of_model(model).unpatched() / 1e9 / work
                own = twin(model)
                stack.enter_context(method.patch(own))
                run = partial(runner(own, mode, options.backend, counts_vary=method_name == THRESHOLDS), images)
                row |= warm_up(run, own, images, mode)
                runs[method_name] = run
            except Exception as error:
                row["error"] = in_a_line(error)
        spent = calls_in_turns(runs, options.rounds)
    for method_name, times in spent.items():
        row, seconds = rows[method_name], statistics.median(times)
        row |= {"seconds": seconds, "images_per_second": batch / seconds}
        if UNPATCHED in spent:
            row["faster"] = median_ratio(spent[UNPATCHED], times)
            row["kept"] = row["faster"] / row["ideal"]
    return list(rows.values())


def runner(model: nn.Module, mode: str, backend: str, counts_vary: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the model in a mode."""
    if mode == EAGER:
        return model
    if mode == COMPILED:
        compiled: Callable[[Tensor], Tensor] = torch.compile(
            model, fullgraph=True, dynamic=counts_vary, backend=backend
        )
        return compiled
    captured = torch.compile(model, fullgraph=True, dynamic=counts_vary, mode="reduce-overhead")

    def replayed(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # the last call's output is no longer needed
        output: Tensor = captured(images)
        return output

    return replayed


def warm_up(run: Callable[[], Tensor], model: nn.Module, images: Tensor, mode: str) -> Row:
    """Return the seconds of the first call, bytes at the peak, and the distance of compiled output to eager."""
    start = time.perf_counter()
    run()
    row: Row = {"first_call": time.perf_counter() - start}
    for _ in range(3):  # CUDA graphs: warm up, record, replay
        output = run()
    if mode != EAGER:
        row["distance_to_eager"] = relative_distance(output, model(images))
    if mode != GRAPHS:  # whose memory is set aside for good
        row["memory"] = peak_memory(lambda _: run(), images)
    return row


def split_rows(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    """Measure the share of each part in the eager forward pass."""
    model, images = loaded(options, name, batch)
    rows = []
    for method_name in (FIXED, THRESHOLDS):
        with equal_method(method_name, model, NETWORKS[name], images).patch(model):
            shares = [time_shares(model, images) for _ in range(options.rounds + 2)][2:]  # two warm up
        row = {"model": name, "batch": batch, "method": method_name}
        rows.append(row | {part: statistics.median(each[part] for each in shares) for part in PARTS})
    return rows


def correctness_rows(options: argparse.Namespace, name: str) -> list[Row]:
    """Measure the error with fixed counts, in each dtype."""
    rows = []
    for dtype in DTYPES:
        row: Row = {"model": name, "dtype": dtype}
        try:
            model, image = loaded(options, name, 1, dtype)
            method = equal_method(FIXED, model, NETWORKS[name], image)
            row["unpatched"], row["patched"] = float64_errors(model, image, method)
        except Exception as error:
            row["error"] = in_a_line(error)
        rows.append(row)
    return rows


def synchronisation_rows(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    """Count how often a forward pass waits for the GPU."""
    model, images = loaded(options, name, batch)
    rows = []
    for method_name in (FIXED, THRESHOLDS):
        with equal_method(method_name, model, NETWORKS[name], images).patch(model):
            model(images)
            count = count_synchronisations(partial(model, images))
        rows.append({"model": name, "batch": batch, "method": method_name, "synchronisations": count})
    return rows


def condition_rows(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    """Run under all conditions, with fixed counts."""
    model, images = loaded(options, name, batch)
    with equal_method(FIXED, model, NETWORKS[name], images).patch(model):
        return [{"model": name, "batch": batch} | row for row in under_conditions(model, images)]


def kernel_rows(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    """Measure attention kernels on as many tokens as a network has left."""
    network, dtype = NETWORKS[name], getattr(torch, options.dtype)
    model = build(network, "meta", dtype)
    tokens = model.num_prefix_tokens + patches_left(model, network)[1]
    case = Case(name, batch, model.blocks[0].attn.num_heads, tokens)
    compiles = any(mode in options.modes for mode in (COMPILED, GRAPHS))
    return attention.measure(case, options.device, dtype, options.rounds, compiles)
