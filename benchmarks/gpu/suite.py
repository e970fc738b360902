"""What ALGM gains on a GPU: speed, memory, where the time goes, exactness, attention kernels. In ten minutes.

    python benchmarks/gpu.py [--models ViT-S ...] [--modes eager compiled graphs] [--batches 1 8 32] [--minutes 10]

ViT-Ti, S, B (512x512 pixels) and L (640x640) as in Segmenter, and DINOv2-L (1036x1036), with random weights: the work
is the same. bfloat16, fused attention, different photographs in a batch. Three modes: eager; compiled (torch.compile,
one graph, static shapes); graphs: compiled, and replayed as CUDA graphs.

Methods, against the unpatched model in the same mode:
- fixed counts: ALGM, CLAP in layer 1 and GBM in layer 5 (L: 7), keeping so many tokens that GFLOPs fall as published
  for Segmenter on ADE20K (Ti 12.8 to 8.4, S 38.6 to 26.3, B 130 to 91, L 672 to 438; DINOv2-L by the share of L);
- fixed, plain: the same without proportional attention;
- thresholds: ALGM with thresholds that as many windows and proposals of the batch reach; each image merges its own;
- ToMe, merging in every layer as many tokens as make its GFLOPs the same.

"ideal" is the speed-up by FLOPs of the tokens that are left, "kept" = speed-up / ideal. Times are medians over rounds
in which all methods take their turn. What matters most is measured first; what does not fit into the time is left out,
and named. The tables also go into a JSON file named after the card; at the end it is said which bars are reached.

To try it without a GPU: --device cpu --models test --modes eager --batches 1 2
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import operator
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attention_kernels
import inside
import timm
import torch
from attention_kernels import in_turns, said
from cost import gflops
from inside import MACHINERY, PARTS
from matched import (
    FIXED,
    METHODS,
    NETWORKS,
    PLAIN,
    THRESHOLDS,
    TOME,
    UNPATCHED,
    Flops,
    algm_kept,
    built,
    method,
    photographs,
    twin,
)
from overhead import peak_memory
from segmentation import positive
from torch import Tensor, nn

MODES = ("eager", "compiled", "graphs")
DTYPES = ("float32", "bfloat16", "float16")
ESSENTIAL = (UNPATCHED, FIXED)
# CUDA graphs are of one shape, which thresholds do not leave.
FURTHER = {"compiled": (UNPATCHED, PLAIN, THRESHOLDS, TOME), "graphs": (UNPATCHED, PLAIN, TOME)}
# Seconds of the time that are not for measuring: Python starts, the end is written.
SPARE = 20

Row = dict[str, Any]


class OutOfTime(BaseException):
    """No Exception: nothing on the way may take it for an error of its own."""


@dataclass(frozen=True)
class Task:
    """A step: rows for one of the tables."""

    table: str
    name: str
    run: Callable[[], list[Row]]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
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
    file = options.results / f"gpu_{re.sub('[^a-z0-9]+', '_', results['card'].lower())}.json"
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
    """Within, OutOfTime is raised after so many seconds.

    And every five from then on: an exception in a finaliser is swallowed.
    """

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
    print(f"\n{task.name}", flush=True)
    try:
        rows = task.run()
    except Exception as error:  # what else there is to measure is measured
        results["errors"].append({"task": task.name, "error": said(error)})
        print(f"  {said(error)}")
        rows = []
    results[task.table] += rows
    for row in rows:
        print(f"  {TABLES[task.table](row)}", flush=True)
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def agenda(options: argparse.Namespace) -> list[Task]:
    """What there is to measure, in the order of importance."""
    names, most, least = options.models, max(options.batches), min(options.batches)
    between = sorted({*options.batches} - {most, least}, reverse=True)
    large = [name for name in names if NETWORKS[name].size > 512]  # take long in float64 on a CPU
    small = [name for name in names if name not in large]
    on_gpu = options.device == "cuda"

    def speed(mode: str, batch: int, methods: Sequence[str], names: Iterable[str] = names) -> Iterator[Task]:
        for name in names if mode in options.modes else ():
            run = partial(speeds, options, name, mode, batch, methods)
            yield Task("speed", f"{name}, {mode}, batch {batch}: {'; '.join(methods)}", run)

    def each(table: str, what: str, names: Iterable[str], measure: Callable[..., list[Row]], *args: Any) -> list[Task]:
        return [Task(table, f"{name}: {what}", partial(measure, options, name, *args)) for name in names]

    tasks = [
        *speed("eager", most, METHODS),
        *each("split", f"where the time goes, batch {most}", names, split, most),
        *each("correctness", "error against float64", small, correctness),
        *(
            task
            for batch in (most, least)
            for task in each(
                "synchronisations", f"host synchronisations, batch {batch}", names[:1] * on_gpu, synchronisations, batch
            )
        ),
        *each("conditions", "under all conditions", names[:1], conditions, least),
        *each("kernels", f"attention kernels, batch {most}", names, kernels, most),
        *speed("graphs", least, ESSENTIAL, [name for name in names if name in GAINS_ALONE]),
        *speed("graphs", most, ESSENTIAL),
        *speed("eager", least, METHODS),
        *speed("compiled", most, ESSENTIAL),
        *speed("graphs", least, ESSENTIAL),
        *speed("compiled", least, ESSENTIAL),
        *(task for batch in between for task in speed("eager", batch, METHODS)),
        *each("split", f"where the time goes, batch {least}", names, split, least),
        *each("correctness", "error against float64", large, correctness),
        *(task for batch in between for mode in FURTHER for task in speed(mode, batch, ESSENTIAL)),
        *(task for batch in (most, least, *between) for mode in FURTHER for task in speed(mode, batch, FURTHER[mode])),
    ]
    return list({task.name: task for task in tasks}.values())  # the first of equal ones


def loaded(options: argparse.Namespace, name: str, batch: int, dtype: str | None = None) -> tuple[Any, Tensor]:
    """A network and its images."""
    model = built(NETWORKS[name], options.device, getattr(torch, dtype or options.dtype))
    return model, photographs(model, NETWORKS[name], batch)


# -- speed and memory


def speeds(options: argparse.Namespace, name: str, mode: str, batch: int, methods: Sequence[str]) -> list[Row]:
    model, images = loaded(options, name, batch)
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for which in methods:
            rows[which] = row = {"model": name, "mode": mode, "batch": batch, "method": which}
            try:
                how = method(which, model, NETWORKS[name], images)
                with how.patch(model):
                    work = gflops(model, images) / batch
                row |= {"setting": how.setting, "gflops": work, "ideal": Flops.of(model).unpatched() / 1e9 / work}
                own = twin(model)
                stack.enter_context(how.patch(own))
                run = partial(runner(own, mode, options.backend, counts_vary=which == THRESHOLDS), images)
                row |= warmed_up(run, own, images, mode)
                runs[which] = run
            except Exception as error:
                row["error"] = said(error)
        spent = in_turns(runs, options.rounds)
    for which, times in spent.items():
        row, seconds = rows[which], statistics.median(times)
        row |= {"seconds": seconds, "images_per_second": batch / seconds}
        if UNPATCHED in spent:
            row["faster"] = statistics.median(map(operator.truediv, spent[UNPATCHED], times))
            row["kept"] = row["faster"] / row["ideal"]
    return list(rows.values())


def runner(model: nn.Module, mode: str, backend: str, counts_vary: bool) -> Callable[[Tensor], Tensor]:
    if mode == "eager":
        return model
    if mode == "compiled":
        return torch.compile(model, fullgraph=True, dynamic=counts_vary, backend=backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=counts_vary, mode="reduce-overhead")

    def replayed(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # the last call's output is no longer needed
        return compiled(images)

    return replayed


def warmed_up(run: Callable[[], Tensor], model: nn.Module, images: Tensor, mode: str) -> Row:
    """Seconds of the first call, bytes at the peak, and how far what is compiled is from what is not."""
    start = time.perf_counter()
    run()
    row: Row = {"first_call": time.perf_counter() - start}
    for _ in range(3):  # CUDA graphs: warm up, record, replay
        output = run()
    if mode != "eager":
        row["distance_to_eager"] = inside.distance(output, model(images))
    if mode != "graphs":  # whose memory is set aside for good
        row["memory"] = peak_memory(lambda _: run(), images)
    return row


# -- the other tables


def split(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    """Shares of the eager forward pass."""
    model, images = loaded(options, name, batch)
    rows = []
    for which in (FIXED, THRESHOLDS):
        how = method(which, model, NETWORKS[name], images)
        with how.patch(model):
            found = [inside.shares(model, images) for _ in range(options.rounds + 2)][2:]  # two warm up
        row = {"model": name, "batch": batch, "method": which}
        rows.append(row | {part: statistics.median(shares[part] for shares in found) for part in PARTS})
    return rows


def correctness(options: argparse.Namespace, name: str) -> list[Row]:
    """Errors with fixed counts."""
    rows = []
    for dtype in DTYPES:
        row: Row = {"model": name, "dtype": dtype}
        try:
            model, image = loaded(options, name, 1, dtype)
            how = method(FIXED, model, NETWORKS[name], image)
            row["unpatched"], row["patched"] = inside.errors(model, image, how)
        except Exception as error:
            row["error"] = said(error)
        rows.append(row)
    return rows


def synchronisations(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    model, images = loaded(options, name, batch)
    rows = []
    for which in (FIXED, THRESHOLDS):
        how = method(which, model, NETWORKS[name], images)
        with how.patch(model):
            model(images)
            number = inside.synchronisations(partial(model, images))
        rows.append({"model": name, "batch": batch, "method": which, "synchronisations": number})
    return rows


def conditions(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    model, images = loaded(options, name, batch)
    how = method(FIXED, model, NETWORKS[name], images)
    with how.patch(model):
        return [{"model": name, "batch": batch} | row for row in inside.conditions(model, images)]


def kernels(options: argparse.Namespace, name: str, batch: int) -> list[Row]:
    """Of as many tokens as are left of a network's."""
    network, dtype = NETWORKS[name], getattr(torch, options.dtype)
    model = built(network, "meta", dtype)
    tokens = model.num_prefix_tokens + algm_kept(model, network)[1]
    case = attention_kernels.Case(name, batch, model.blocks[0].attn.num_heads, tokens)
    compiles = any(mode in options.modes for mode in FURTHER)
    return attention_kernels.record(case, options.device, dtype, options.rounds, compiles)


# -- what must hold

KEPT = {"ViT-L": 0.95, "ViT-B": 0.95, "ViT-S": 0.9, "ViT-Ti": 0.8}
LEAN = ("ViT-L", "ViT-B", "ViT-S")
GAINS_ALONE = ("ViT-B", "ViT-L", "DINOv2-L")


def bars(results: Mapping[str, Any]) -> list[Row]:
    """What must hold, what was found (an error, where it failed), and whether all of that reaches it."""
    speed, split = results["speed"], [row for row in results["split"] if row["batch"] == 32]
    at_32 = [row for row in speed if row["batch"] == 32 and row["method"] in (FIXED, THRESHOLDS)]
    alone = [row for row in speed if (row["batch"], row["mode"], row["method"]) == (1, "graphs", FIXED)]
    faster = {(place(row), row["method"]): row["faster"] for row in speed if "faster" in row}
    plain = {where: gain for (where, which), gain in faster.items() if which == PLAIN and (where, FIXED) in faster}
    waits = results["synchronisations"]
    return [
        *(
            bar(
                f"speed-up kept at batch 32, {name}: at least {least}",
                {f"{row['mode']}, {row['method']}": value(row, "kept") for row in at_32 if row["model"] == name},
                least=least,
            )
            for name, least in KEPT.items()
        ),
        *(
            bar(
                f"share of matching, merging, unmerging and what is around them at batch 32, {name}: at most 0.04",
                {row["method"]: sum(row[part] for part in MACHINERY) for row in split if row["model"] == name},
                most=0.04,
            )
            for name in LEAN
        ),
        *(
            bar(
                f"times faster at batch 1 with CUDA graphs, {name}: at least 1.05",
                {row["method"]: value(row, "faster") for row in alone if row["model"] == name},
                least=1.05,
            )
            for name in GAINS_ALONE
        ),
        bar(
            "what proportional attention costs of the patched forward pass: at most 0.05",
            {where: gain / faster[where, FIXED] - 1 for where, gain in plain.items()},
            most=0.05,
        ),
        bar(
            "host synchronisations with fixed counts: none",
            {place(row): row["synchronisations"] for row in waits if row["method"] == FIXED},
            most=0,
        ),
        bar(
            "host synchronisations of two merges by thresholds: one each",
            {place(row): row["synchronisations"] for row in waits if row["method"] == THRESHOLDS},
            most=2,
        ),
        bar(
            "with deterministic algorithms, on channels-last and non-contiguous input, output moves by: at most 0.1",
            {f"{row['model']}, {row['condition']}": value(row, "distance") for row in results["conditions"]},
            most=0.1,
        ),
        bar(
            "error against float64 / the unpatched model's: at most 2",
            {
                f"{row['model']}, {row['dtype']}": row.get("error") or row["patched"] / row["unpatched"]
                for row in results["correctness"]
            },
            most=2,
        ),
    ]


def place(row: Row) -> str:
    return ", ".join([*(row[key] for key in ("model", "mode") if key in row), f"batch {row['batch']}"])


def value(row: Row, what: str) -> Any:
    """Or why there is none."""
    return row[what] if what in row else row.get("error", "nothing to compare with")


def bar(text: str, found: dict[str, Any], least: float = -math.inf, most: float = math.inf) -> Row:
    reached = all(isinstance(number, (int, float)) and least <= number <= most for number in found.values())
    verdict = "not measured" if not found else "reached" if reached else "not reached"
    return {"bar": text, "found": found, "verdict": verdict}


# -- what is printed


def speed_line(row: Row) -> str:
    start = f"{row['method']:13} {row.get('setting', ''):22}"
    if "error" in row:
        return f"{start} {row['error']}"
    gain = f"{row['faster']:6.2f} × of {row['ideal']:.2f} ×, kept {row['kept']:.2f}" if "kept" in row else ""
    memory = f"{row['memory'] / 2**20:9.1f} MiB" if "memory" in row else " " * 13
    eager = f", {row['distance_to_eager']:.1e} from eager" if "distance_to_eager" in row else ""
    return (
        f"{start}{row['gflops']:9.3g} GFLOPs{1e3 * row['seconds']:10.3f} ms{row['images_per_second']:10.1f} im/s"
        f"{gain}{memory}   first call {row['first_call']:.1f} s{eager}"
    )


def split_line(row: Row) -> str:
    return f"{row['method']:13} " + "  ".join(f"{part} {row[part]:6.1%}" for part in PARTS)


def correctness_line(row: Row) -> str:
    if "error" in row:
        return f"{row['dtype']:9} {row['error']}"
    return f"{row['dtype']:9} unpatched {row['unpatched']:.1e}, patched {row['patched']:.1e}"


def synchronisations_line(row: Row) -> str:
    return f"{row['method']:13} {row['synchronisations']}"


def conditions_line(row: Row) -> str:
    return f"{row['condition']:26} {row['error'] if 'error' in row else format(row['distance'], '.1e')}"


TABLES: dict[str, Callable[[Row], str]] = {
    "speed": speed_line,
    "split": split_line,
    "correctness": correctness_line,
    "synchronisations": synchronisations_line,
    "conditions": conditions_line,
    "kernels": attention_kernels.line,
}


def closing(results: Mapping[str, Any]) -> Iterator[str]:
    yield "\nBars"
    for row in results["bars"]:
        found = "; ".join(f"{where} {shown(number)}" for where, number in row["found"].items())
        yield f"  {row['verdict']:13} {row['bar']}{': ' * bool(found)}{found}"
    for title, entries in (
        ("Failed", [f"{row['task']}: {row['error']}" for row in results["errors"]]),
        ("Left out, no time", results["left_out"]),
    ):
        if entries:
            yield "\n".join([f"\n{title}", *(f"  {entry}" for entry in entries)])


def shown(number: float | str) -> str:
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in NETWORKS if name != "test"]
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=usual, help=f"(default: {' '.join(usual)})")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="(default: all)")
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8, 32], help="(default: 1 8 32)")
    parser.add_argument("--minutes", type=float, default=10, help="never more (default: 10)")
    parser.add_argument("--rounds", type=positive, default=9, help="(default: 9)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument("--backend", default="inductor", help="that compiles, in the mode compiled (default: inductor)")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder (default: results beside this)"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device. To try the command without: --device cpu --models test --modes eager")
    if options.device == "cpu" and "graphs" in options.modes:
        parser.error("CUDA graphs need a CUDA device. Give --modes eager, or eager compiled")
    return options


if __name__ == "__main__":
    main()
