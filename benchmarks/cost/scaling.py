"""Measure how the cost of merging grows with the tokens: time and memory of each stage, against the unpatched network.

    python -m benchmarks.cost.scaling [--model vit_small_patch16_224] [--tokens 256 1024 ...] [--batches 1 8 32]
        [--device cpu] [--dtype float32] [--rounds 5] [--budget 100] [--out benchmarks/results/scaling_cpu]

It writes a table, a CSV and a PNG. The stages of one CLAP and one GBM, and the unmerge at the end of the network:
- CLAP matching: similarity of the windows, which of them merge, the map; CLAP merge: the windows' means;
- GBM matching: every A token's best match, which of them merge, the map and its composition; GBM merge: the groups'
  means;
- unmerge: the full grid again.

Each stage is given all tokens. In a network GBM finds what CLAP has left and costs less: its matching is quadratic.
Tokens are random, and thresholds such that half of the windows and half of the proposals of a batch merge, every image
by its own content.

"forward" is the unpatched network, with random weights. Where it would take longer than the budget, one block is
measured and multiplied by their number (marked "*"): blocks are alike, what stands around them is left out. Shares are
of that forward pass: medians over rounds in which all take turns. What would take longer even so is left out, and
listed. The budget is in seconds, for each combination of tokens and batch.

Memory: the peak of what is allocated beyond the input, in bytes a token; of the forward pass, that of one block.

At the end it says whether two bars hold: matching takes less than 5 % of the forward pass; its memory is linear in the
tokens, but for one chunk of similarities of a fixed size.
"""

from __future__ import annotations

import argparse
from math import isqrt
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from algm_patch.cli.options import positive

from ..common.arguments import add_machine_options, add_rounds, command_line, dtype_of
from ..common.timing import device_name
from .scaling_figure import draw
from .scaling_report import HEADER, table_row, verdicts, write_csv
from .stages import LeftOut, Measured, scaling

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str] | None = None) -> tuple[list[Measured], list[LeftOut]]:
    """Run the command."""
    options = parse(arguments)
    model = plain_vit(options.model).eval().to(options.device, dtype_of(options))
    title = f"{options.model}, {options.dtype}, {device_name(options.device)}"
    print(f"{title}, torch {torch.__version__}, timm {timm.__version__}, median of {options.rounds} rounds\n{HEADER}")
    combinations = [(tokens, batch) for batch in sorted(options.batches) for tokens in sorted(options.tokens)]
    measured: list[Measured] = []
    left_out: list[LeftOut] = []
    with torch.inference_mode():
        for result in scaling(model, combinations, options.rounds, options.budget):
            if isinstance(result, Measured):
                measured.append(result)
            else:
                left_out.append(result)
            print(table_row(result), flush=True)
    out = options.out or RESULTS / f"scaling_{torch.device(options.device).type}"
    out.parent.mkdir(parents=True, exist_ok=True)
    table, picture = out.with_suffix(".csv"), out.with_suffix(".png")
    write_csv(table, measured, left_out)
    print("\n" + "\n".join(verdicts(measured) if measured else ["Nothing fits the budget: give more"]))
    print(f"\n{table}")
    if measured:
        draw(measured, left_out, title).savefig(picture, dpi=120)
        print(picture)
    return measured, left_out


def plain_vit(name: str) -> VisionTransformer:
    """Return a plain vision transformer of timm, with random weights, for any number of tokens."""
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, dynamic_img_size=True)
    except (RuntimeError, TypeError) as error:  # no such model, or one of another kind
        raise SystemExit(f"error: {name}: {error}. Give a plain vision transformer of timm's") from error
    if not isinstance(model, VisionTransformer):
        raise SystemExit(f"error: {name} is a {type(model).__name__}. Give a plain vision transformer of timm's")
    return model


def square(text: str) -> int:
    """Read a number of tokens that is a square grid with at least one window."""
    tokens = int(text)
    side = max(2, isqrt(max(tokens, 0)))
    if side * side != tokens:
        raise argparse.ArgumentTypeError(f"{tokens} tokens are no square grid: give {side**2} or {(side + 1) ** 2}")
    return tokens


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224", help="a plain vision transformer of timm")
    parser.add_argument(
        "--tokens",
        type=square,
        nargs="+",
        default=[256, 576, 1024, 2304, 4096, 9216, 16384],
        help="tokens of an image: squares (default: 256 to 16384)",
    )
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32], help="(default: 1 8 32)")
    add_machine_options(parser)
    add_rounds(parser, 5)
    parser.add_argument(
        "--budget", type=float, default=100, help="seconds for each combination of tokens and batch (default: 100)"
    )
    parser.add_argument("--out", type=Path, help="files, without ending (default: benchmarks/results/scaling_DEVICE)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
