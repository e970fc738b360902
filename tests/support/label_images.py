"""A data set that a tiny ViT learns, and the arguments of runs on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE, COLOURS, IGNORED = 96, [(200, 30, 30), (30, 200, 30), (30, 30, 200)], 9
NAME = "vit_tiny_patch16_224"


def make_split(folder: Path, count: int, seed: int) -> None:
    """Write images of rectangles on a background, each class in its colour, and labels with a pixel that is ignored."""
    random = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        label = np.zeros((SIDE, SIDE), np.uint8)
        for value in (1, 2):
            top, left = random.integers(0, SIDE - 40, 2)
            label[top : top + 40, left : left + 40] = value
        image = np.array(COLOURS, np.uint8)[label] + random.integers(0, 20, (SIDE, SIDE, 3), np.uint8)
        label[0, 0] = IGNORED
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")


def arguments(data, weights, out, *more: object, epochs: int = 2) -> list[str]:
    """Return the arguments of a run. Later ones replace earlier ones."""
    given = ["--layout", "folder", "--data", data, "--ignore", IGNORED, "--model", f"timm:{NAME}"]
    given += ["--weights", weights, "--size", SIDE, SIDE, "--batch", 4, "--workers", 0, "--gbm-layers", 3]
    given += ["--tau", 0.9, "--epochs", epochs, "--out", out, "--device", "cpu"]
    return [*map(str, given), *map(str, more)]
