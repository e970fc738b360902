"""Images that a tiny ViT learns to segment, its weights in a file, and the options of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  training logs with it

SIDE, COLOURS, IGNORED = 96, [(200, 30, 30), (30, 200, 30), (30, 30, 200)], 9
NAME = "vit_tiny_patch16_224"


def make_split(folder: Path, count: int, seed: int) -> None:
    """Write images of rectangles, each class of a colour of its own, and labels with an ignored pixel."""
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


def make_data(root: Path) -> Path:
    """Write eight images to train on and three to validate with."""
    make_split(root / "train", 8, seed=0)
    make_split(root / "val", 3, seed=1)
    return root


def save_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "vit.safetensors"
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), path)
    return path


def arguments(data, weights, out, *more: object, epochs: int = 2) -> list[str]:
    """Return the options of a run; later ones replace earlier ones."""
    given = ["--layout", "folder", "--data", data, "--ignore", IGNORED, "--model", f"timm:{NAME}"]
    given += ["--weights", weights, "--size", SIDE, SIDE, "--batch", 4, "--workers", 0, "--gbm-layers", 3]
    given += ["--tau", 0.9, "--epochs", epochs, "--out", out, "--device", "cpu"]
    return [*map(str, given), *map(str, more)]
