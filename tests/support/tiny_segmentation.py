"""A folder of labelled images, tiny models for them, and files of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks.evaluation.dataset import Dataset
from benchmarks.evaluation.dense import DenseNetwork, linear_head
from benchmarks.evaluation.layouts import open_dataset
from benchmarks.evaluation.models import SegmentationModel

HIGH, WIDE = 48, 64
CLASSES, IGNORED = 5, 9


def noise(seed: int, high: int = HIGH, wide: int = WIDE) -> Image.Image:
    """Return an image of smooth colours, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)


def labels(seed: int, values: list[int], high: int = HIGH, wide: int = WIDE) -> Image.Image:
    """Return a label of random patches in which each of these values occurs."""
    chosen = np.random.default_rng(seed).permutation(np.resize(values, (high // 4) * (wide // 4)))
    return Image.fromarray(chosen.reshape(high // 4, wide // 4).astype(np.uint8).repeat(4, 0).repeat(4, 1))


def save(picture: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def make_folder(root: Path, count: int = 3, values: list[int] | None = None) -> Path:
    for i in range(count):
        save(noise(i), root / "images" / f"{i}.jpg")
        save(labels(i, values or [*range(CLASSES), IGNORED]), root / "labels" / f"{i}.png")
    return root


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset("folder", root, ignore=IGNORED, progress=False, **options)


TINY = {"embed_dim": 64, "depth": 4, "num_heads": 2}
NAME = "vit_tiny_patch16_224"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def linear(size: Any = (64, 96), **options: Any) -> SegmentationModel:
    """Return a tiny ViT with a linear head and random weights, whose classes differ."""
    torch.manual_seed(0)
    backbone = timm.create_model(NAME, dynamic_img_size=True, num_classes=0, patch_size=8, **TINY)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    network = DenseNetwork(backbone, linear_head(64, CLASSES))
    return SegmentationModel(network, CLASSES, MEAN, STD, size, name="tiny", **options).eval()


def head_in_file(folder: Path) -> tuple[Path, nn.Module]:
    """Write a linear head with random weights."""
    torch.manual_seed(0)
    head: Any = linear_head(192, CLASSES).eval()
    with torch.no_grad():
        for tensor in (head[0].running_mean, head[0].weight, head[0].bias, head[1].bias):
            tensor.normal_()
    path = folder / "head.safetensors"
    save_file(head.state_dict(), path)
    return path, head


def backbone_in_file(folder: Path) -> tuple[Path, nn.Module]:
    """Write a backbone of timm with random weights."""
    backbone = timm.create_model(NAME).eval()
    path = folder / "backbone.safetensors"
    save_file(backbone.state_dict(), path)
    return path, backbone


def count_predictions(monkeypatch, stop_after: int | None = None) -> list[Path]:
    """Return a list that gets the size of every later prediction; interrupt after ``stop_after`` of them."""
    seen: list[Any] = []
    predict = SegmentationModel.predict

    def counted(self, image, size):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(size)
        return predict(self, image, size)

    monkeypatch.setattr(SegmentationModel, "predict", counted)
    return seen
