"""The command line of benchmarks that measure segmentation: a tiny model and a folder of eight images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.support.models import photo

GRID = (6, 8)
CLASSES = 3


def tiny_command(folder: Path) -> list[str]:
    """Return options for a model with random weights and eight images, flat in places and noisy in others."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=0)
    save_file(backbone.state_dict(), folder / "backbone.safetensors")
    head = nn.Sequential(nn.BatchNorm2d(backbone.num_features), nn.Conv2d(backbone.num_features, CLASSES, 1))
    save_file(head.state_dict(), folder / "head.safetensors")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(8):
        pixels = (photo(batch=1, grid=GRID, seed=number)[0].clamp(-2, 2) * 60 + 128).byte()
        pixels[:, :32] = 40 * number % 255
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "images" / f"{number}.png")
        labels = np.arange(pixels[0].numel()).reshape(pixels[0].shape) * CLASSES // pixels[0].numel()
        Image.fromarray(labels.astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    options = f"--data {folder} --layout folder --model timm:test_vit --size 96 128 --device cpu"
    files = ["--weights", str(folder / "backbone.safetensors"), "--head", str(folder / "head.safetensors")]
    return [*options.split(), *files]
