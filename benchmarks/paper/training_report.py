"""Print what ways to train come to, beside the rows of the supplement's Tab. 4d."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import torch

from ..common.timing import device_name
from ..evaluation.dataset import Dataset
from ..evaluation.options import default_device
from ..training.options import merge_settings

WAYS = OFF, DIRECT, MORE, TUNED, TRAINED = "off", "direct", "off, longer", "fine-tuned", "trained"
# Tab. 4d: mIoU, images a second, GFLOPs.
PUBLISHED = {OFF: (45.3, 134, 38.6), DIRECT: (45.3, 193, 26.2), TUNED: (45.7, 192, 26.3), TRAINED: (46.4, 192, 26.3)}


@dataclass(frozen=True)
class Row:
    """Hold what one way to train comes to.

    Attributes:
        miou: of each seed, in [0, 1].
        gflops: of the ViT, for an image, averaged over images and seeds.
    """

    miou: list[float]
    gflops: float

    @property
    def mean(self) -> float:
        """Return the mean mIoU."""
        return statistics.mean(self.miou)

    @property
    def spread(self) -> float:
        """Return the largest mIoU minus the smallest."""
        return max(self.miou) - min(self.miou)


@dataclass(frozen=True)
class Cost:
    """Hold the cost of a forward pass or a training step, without merging and with it.

    Attributes:
        seconds, memory: (without, with); memory in bytes at the peak, beyond what was allocated before.
        faster: the time without divided by the time with: the median over rounds.
    """

    seconds: tuple[float, float]
    memory: tuple[float, float]
    faster: float


def report(
    options: argparse.Namespace,
    training: argparse.Namespace,
    images: dict[str, Dataset],
    rows: dict[str, Row],
    costs: dict[str, Cost],
) -> str:
    """Return the table, and the cost of a training step."""
    forward, step = costs["forward"], costs["step"]
    settings = merge_settings(training)
    assert settings is not None
    blocks = "all" if training.blocks is None else f"the last {training.blocks}"
    lines = [
        f"{images['train'].name}: {len(images['train'])} images to train on, {len(images['val'])} to validate, "
        f"{training.size[0]}x{training.size[1]} pixels",
        f"{training.model}: head and {blocks} blocks, {training.optimizer}, {training.batch} images a step, "
        f"{options.epochs} epochs, {options.more} more to fine-tune; seeds {', '.join(map(str, options.seeds))}",
        f"ALGM: {', '.join(f'{name}={value}' for name, value in dict(settings).items() if name != 'record')}",
        f"{device_name(default_device())}, {training.precision or 'float32'}, torch {torch.__version__}",
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
    memory = step.memory[1] / step.memory[0]
    lines += ["", f"a training step with merging: {step.faster:.2f} × faster, {memory:.2f} of the memory"]
    if default_device() == "cuda":
        for name, cost in costs.items():
            without, merging = (
                f"{1000 * time:.1f} ms, {memory / 2**20:.0f} MiB"
                for time, memory in zip(cost.seconds, cost.memory, strict=True)
            )
            lines.append(f"a {name}: {without} without merging, {merging} with it")
    return "\n".join(lines)
