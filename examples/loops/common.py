"""The network and the images that all scripts train on: coloured rectangles, whose colours are the classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

# Patches a model.
Patch = Callable[[nn.Module], Any]
# A script: from what patches, a folder for checkpoints, and the name of the checkpoint to resume from, to the trained
# model and the loss of every step.
Script = Callable[..., tuple[nn.Module, list[float]]]

SIDE, PATCH = 64, 8  # of an image and of a patch, in pixels
CLASSES, BATCH, EPOCHS = 4, 4, 8
STEPS = 4 * EPOCHS
HALF = STEPS // 2


class Rectangles(list[dict[str, Tensor]]):
    """Hold images of coloured rectangles on a flat background; the label of a pixel is the number of its colour."""

    def __init__(self, images: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        colours = torch.tensor([[-1.0, -1, 0], [1, -1, 1], [-1, 1, 1], [1, 1, -1]])
        for _ in range(images):
            labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
            for colour in torch.randint(1, CLASSES, (4,), generator=generator):
                top, left, height, width = torch.randint(4, SIDE // 2, (4,), generator=generator)
                labels[top : top + height, left : left + width] = colour
            image = colours[labels].permute(2, 0, 1)
            noise = 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
            self.append({"pixel_values": image + noise, "labels": labels})


TRAIN, VAL = Rectangles(4 * BATCH, seed=0), Rectangles(BATCH, seed=1)


class LinearSegmentor(nn.Module):
    """Give every patch a class: a ViT of timm and a linear layer on its tokens."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 2}
        self.vit = timm.create_model("vit_tiny_patch16_224", **shape, num_classes=0, drop_path_rate=0.1)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C, H, W]."""
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        return interpolate(self.head(tokens).mT.unflatten(2, (SIDE // PATCH, -1)), images.shape[2:], mode="bilinear")
