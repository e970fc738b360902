"""Measure what ALGM gains on a GPU: speed, memory, where the time goes, exactness, attention kernels. In ten minutes.

    python -m benchmarks.gpu.suite [--models ViT-S ...] [--modes eager compiled graphs] [--batches 1 8 32]
        [--minutes 10]

ViT-Ti, S, B (512x512 pixels) and L (640x640) as in Segmenter, and DINOv2-L (1036x1036), with random weights: the work
is the same. bfloat16, fused attention, different photographs in a batch. Three modes: eager; compiled (torch.compile,
one graph, static shapes); graphs: compiled, and replayed as CUDA graphs.

Methods, against the unpatched model in the same mode:
- fixed counts: ALGM, CLAP in layer 1 and GBM in layer 5 (L: 7), leaving so many tokens that GFLOPs fall as published
  for Segmenter on ADE20K (Ti 12.8 to 8.4, S 38.6 to 26.3, B 130 to 91, L 672 to 438; DINOv2-L by the share of L);
- fixed, plain: the same without proportional attention;
- thresholds: ALGM with thresholds that as many windows and proposals of the batch reach; each image merges its own;
- ToMe, merging in every layer as many tokens as make its GFLOPs the same.

"ideal" is the speed-up by FLOPs of the tokens that are left, "kept" = speed-up / ideal. Times are medians over rounds
in which all methods take turns. The most important is measured first; what does not fit into the time is left out, and
listed. The tables also go into a JSON file named after the card. The end says which bars are reached.

To try it without a GPU: --device cpu --models test --modes eager --batches 1 2
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch

from algm_patch.cli.options import positive

from ..common.arguments import DTYPES, add_rounds, command_line
from .agenda import Task, agenda
from .bars import bars
from .exactness import in_a_line
from .lines import TABLES, closing
from .networks import NETWORKS
from .tables import GRAPHS, MODES

RESULTS = Path(__file__).parents[1] / "results"
# Seconds of the time that are not for measuring: Python starts, the end is written.
SPARE = 20


class OutOfTime(BaseException):
    """Say that the time is over. It is no Exception, so that no code in between takes it for an error of its own."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the command."""
    start = time.monotonic()
    options = parse(arguments)
    results: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "timm": timm.__version__,
        "dtype": options.dtype,
        "rounds": options.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in results.items()))
    results |= {table: [] for table in TABLES} | {"errors": [], "left_out": []}
    file: Path = options.results / f"gpu_{re.sub('[^a-z0-9]+', '_', results['card'].lower())}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    waiting = agenda(options)
    try:
        with torch.no_grad(), alarm(60 * options.minutes - SPARE):
            while waiting:
                carry_out(waiting[0], results)
                file.write_text(json.dumps(results, indent=1) + "\n")
                del waiting[0]
    except OutOfTime:
        results["left_out"] = [task.name for task in waiting]
    results |= {"bars": bars(results), "minutes": (time.monotonic() - start) / 60}
    file.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join([*closing(results), "", f"{results['minutes']:.1f} minutes. {file}"]))
    return results


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after so many seconds, and every five from then on: finalisers swallow exceptions."""

    def ring(*_: object) -> None:
        raise OutOfTime

    if seconds <= 0:
        raise OutOfTime
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def carry_out(task: Task, results: dict[str, Any]) -> None:
    """Measure the rows of a task, add them to the results and print them."""
    print(f"\n{task.name}", flush=True)
    try:
        rows = task.measure()
    except Exception as error:  # the other tasks are measured all the same
        results["errors"].append({"task": task.name, "error": in_a_line(error)})
        print(f"  {in_a_line(error)}")
        rows = []
    results[task.table] += rows
    for row in rows:
        print(f"  {TABLES[task.table](row)}", flush=True)
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    usual = [name for name in NETWORKS if name != "test"]
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=usual, help=f"(default: {' '.join(usual)})")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="(default: all)")
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8, 32], help="(default: 1 8 32)")
    parser.add_argument("--minutes", type=float, default=10, help="time limit (default: 10)")
    add_rounds(parser, 9)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument("--backend", default="inductor", help="compiler of the mode compiled (default: inductor)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device. To try the command without: --device cpu --models test --modes eager")
    if options.device == "cpu" and GRAPHS in options.modes:
        parser.error("CUDA graphs need a CUDA device. Give --modes eager, or eager compiled")
    return options


if __name__ == "__main__":
    main()
