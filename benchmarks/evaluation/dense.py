"""Build networks that give every patch a class: a plain ViT and a head on the tokens of its last block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..common.images import channel_statistics
from .models import SegmentationModel, Size
from .weights import ModelError, load_strictly, read_tensors


class DenseNetwork(nn.Module):
    """Run a ViT of timm or Hugging Face, and a head on the normalised patch tokens of its last block."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C, h, w] of images [B, 3, H, W], for the grid (h, w) of patches."""
        if hasattr(self.trunk, "forward_intermediates"):
            (features,) = self.trunk.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        else:
            features = self.trunk(pixel_values=images).feature_maps[-1]
        logits: Tensor = self.head(features)
        return logits


def linear_head(width: int, classes: int) -> nn.Module:
    """Return a head of a BatchNorm2d and a 1x1 convolution."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))


class MaskTransformer(nn.Module):
    """Decode as Segmenter: class tokens attend with the patches, and products of the two are masks.

    Strudel et al., *Segmenter: Transformer for Semantic Segmentation*, ICCV 2021, section 3.2.
    """

    def __init__(self, width: int, classes: int, depth: int = 2) -> None:
        super().__init__()
        self.class_tokens = nn.Parameter(0.02 * torch.randn(1, classes, width))
        self.project = nn.Linear(width, width)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.patches = nn.Linear(width, width, bias=False)
        self.classes = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C, h, w] of features [B, D, h, w]."""
        patches = self.project(features.flatten(2).mT)
        tokens = self.layers(torch.cat([self.class_tokens.expand(len(features), -1, -1), patches], 1))
        classes, patches = tokens.tensor_split([self.class_tokens.shape[1]], 1)
        masks = normalize(self.patches(patches), dim=-1) @ normalize(self.classes(classes), dim=-1).mT
        logits: Tensor = self.norm(masks).mT.unflatten(2, features.shape[-2:])
        return logits


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear_head, "mask": MaskTransformer}


def dense_model(
    name: str,
    trunk: Any,
    head: str,
    classes: int,
    size: Size,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> SegmentationModel:
    """Return a segmentation model of a trunk and an untrained head.

    Args:
        head: one of ``HEADS``.
        size: (height, width) of images in pixels.
        statistics: mean and standard deviation of the channels; by default those that the trunk's library names.
    """
    width = trunk.channels[-1] if hasattr(trunk, "channels") else trunk.num_features
    network = DenseNetwork(trunk, HEADS[head](width, classes))
    mean, std = channel_statistics(trunk) if statistics is None else statistics
    return SegmentationModel(network, classes, mean, std, size, name=name)


def with_linear_head(name: str, trunk: Any, head: Path, size: Size) -> SegmentationModel:
    """Return a segmentation model with a trained linear head.

    Args:
        head: a safetensors file with ``0.*`` of a BatchNorm2d and ``1.*`` of a 1x1 Conv2d.

    Raises:
        ModelError: if the file is not there or does not fit the trunk.
    """
    tensors = read_tensors(head)
    for key in ("0.weight", "0.bias", "0.running_mean", "0.running_var", "1.weight", "1.bias"):
        if key not in tensors:
            raise ModelError(f"{head} has no {key}: expected 0.* of a BatchNorm2d and 1.* of a Conv2d")
    classes, width = tensors["1.weight"].shape[:2]
    if width != trunk.num_features:
        raise ModelError(f"{head} is for {width} channels, the backbone gives {trunk.num_features}")
    model = dense_model(name, trunk, "linear", classes, size)
    tensors.setdefault("0.num_batches_tracked", torch.tensor(0))
    load_strictly(model.network.head, tensors, head)
    return model
