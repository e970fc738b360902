"""Bring images to a network and logits back, as published checkpoints want it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from .weights import ModelError

Size = int | tuple[int, int]


class SegmentationModel(nn.Module):
    """Segment images of any size at one scale.

    Args:
        network: normalised images [B, 3, H, W] to logits [B, classes, h, w].
        classes: number of classes.
        mean, std: statistics of each channel, for pixels in [0, 1].
        size: (height, width) in pixels that an image is resized to; with a window, the length of its shorter side.
        window, stride: in pixels: slide a square window over the image as Segmenter does, add up the logits and divide
            by the number of windows that saw each pixel. None: give the network the whole image at once.
        interpolation, antialias: how images are resized.
        name: name to print; by default the network's class.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        size: Size,
        *,
        window: int | None = None,
        stride: int | None = None,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        antialias: bool = True,
        name: str = "",
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.classes = classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.size: Size
        self.resize_to(size, window, stride)
        self.interpolation, self.antialias = interpolation, antialias
        self.name = name or type(network).__name__

    def resize_to(self, size: Size | None, window: int | None = None, stride: int | None = None) -> None:
        """Set the size of images and of the window, or raise ModelError."""
        self.size, self.window, self.stride = checked_sizes(size, window, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits [B, C, h, w] of normalised images [B, 3, H, W]."""
        logits: Tensor = self.network(images)
        return logits

    def preprocess(self, image: Tensor) -> Tensor:
        """Return an image [3, H, W] uint8 as [1, 3, h, w]: resized, normalised, on the model's device, in its dtype."""
        parameter = next(self.parameters())
        size = self.size if isinstance(self.size, tuple) else with_shorter_side(image.shape[-2:], self.size)
        resized = transforms.resize(image, list(size), self.interpolation, antialias=self.antialias)
        pixels = transforms.to_dtype(resized.to(parameter.device), torch.float32, scale=True)
        return transforms.normalize(pixels, list(self.mean), list(self.std))[None].to(parameter.dtype)

    @torch.inference_mode()
    def predict(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """Return the logits [C, H, W] float32 of an image [3, h, w] uint8, at ``size`` (H, W)."""
        images = self.preprocess(image)
        logits = self(images).float() if self.window is None else self.slide(images)
        return interpolate(logits, tuple(size), mode="bilinear")[0]

    def slide(self, images: Tensor) -> Tensor:
        """Return the logits [1, C, H, W] of a normalised image [1, 3, H, W] with both sides at least the window's.

        The network sees one window at a time, so that each merges by its own content.
        """
        assert self.window is not None
        assert self.stride is not None
        total = images.new_zeros(1, self.classes, *images.shape[-2:], dtype=torch.float32)
        count = torch.zeros_like(total[:, :1])
        side = self.window
        for top in window_starts(images.shape[-2], side, self.stride):
            for left in window_starts(images.shape[-1], side, self.stride):
                part = (..., slice(top, top + side), slice(left, left + side))
                logits = self(images[part]).float()
                total[part] += interpolate(logits, (side, side), mode="bilinear")
                count[part] += 1
        return total / count


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side: at every stride, the last one flush with the end."""
    return [*range(0, length - window, stride), length - window]


def with_shorter_side(size: Sequence[int], shorter: int) -> tuple[int, int]:
    """Return (height, width) of the same proportions as ``size``, the shorter side as long as given."""
    scale = shorter / min(size)
    height, width = (max(shorter, int(side * scale + 0.5)) for side in size)
    return height, width


def checked_sizes(size: Size | None, window: int | None, stride: int | None) -> tuple[Any, int | None, int | None]:
    """Return size, window and stride in the form that a model keeps, or raise ModelError."""
    if window is None:
        if stride is not None:
            raise ModelError(f"stride {stride} is that of a window. Give the window too")
        return (size, size) if isinstance(size, int) else size, None, None
    stride = window if stride is None else stride
    if not isinstance(size, int):
        raise ModelError(f"size {size} with a window: expected one number, the length of the image's shorter side")
    if not 0 < stride <= window <= size:
        raise ModelError(f"expected 0 < stride <= window <= size, got stride {stride}, window {window}, size {size}")
    return size, window, stride
