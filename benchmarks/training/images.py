"""Open training and validation images, and augment them."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..evaluation.dataset import DataError, Dataset
from ..evaluation.layouts import open_dataset
from ..evaluation.models import SegmentationModel

IGNORED = -100  # the label that cross entropy ignores by default


def open_splits(options: argparse.Namespace, progress: bool) -> dict[str, Dataset]:
    """Return the images to train on ("train") and to validate with ("val").

    Raises:
        DataError: if they share images, or have different classes.
    """
    train, val = (
        open_dataset(options.layout, options.data, split, options.ignore, progress=progress)
        for split in ("train", "val")
    )
    if same := set(train.pairs) & set(val.pairs):
        name = min(pair.image for pair in same)
        raise DataError(f"{name} is in both splits of {options.data}. --data must hold a folder for each: train, val")
    if len(train.classes) != len(val.classes):
        raise DataError(
            f"the training labels of {options.data} hold {len(train.classes)} classes, the validation labels "
            f"{len(val.classes)}. Is --ignore right? Else name the classes: a classes.txt beside images/, in both"
        )
    return {"train": train[:: options.train_every], "val": val[:: options.val_every]}


class Crops(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Yield random crops, mirrored, of other size, shape and light: [3, H, W] normalised, and labels [H, W]."""

    def __init__(self, dataset: Dataset, model: SegmentationModel) -> None:
        self.dataset = dataset
        steps: list[Any] = [
            v2.RandomResizedCrop(model.size, scale=(0.25, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1),  # Segmenter's
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(model.mean, model.std),
        ]
        self.augment = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset[index]
        label = sample.label
        if self.dataset.ignore_index is not None:
            label = label.where(label != self.dataset.ignore_index, IGNORED)
        image, label = self.augment(tv_tensors.Image(sample.image), tv_tensors.Mask(label))
        return image.as_subclass(Tensor), label.as_subclass(Tensor)
