"""Provide photographs of different content as model input."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from algm_patch.images.named import image_files
from algm_patch.images.normalization import normalization
from algm_patch.images.reading import open_image

PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "retina",
    "hubble_deep_field",
    "immunohistochemistry",
    "camera",
)
TEXTURES = ("brick", "grass", "gravel")  # all over, so that no token is like its neighbours


def photograph(name: str) -> Image.Image:
    """Return one of the photographs of scikit-image in RGB."""
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def eight_pictures(folder: Path | None = None) -> list[Image.Image]:
    """Return eight evenly spaced images of a folder; without a folder, eight photographs."""
    if folder is None:
        return [photograph(name) for name in PHOTOGRAPHS]
    paths = image_files(folder)
    return [open_image(paths[i * len(paths) // 8]) for i in range(8)]


def pictures(folder: Path | None = None) -> dict[str, Image.Image]:
    """Return all images of a folder by name; without a folder, the photographs and the textures.

    Raises:
        ValueError: if the folder holds no images.
    """
    if folder is None:
        return {name: photograph(name) for name in (*PHOTOGRAPHS, *TEXTURES)}
    return {path.stem: open_image(path) for path in image_files(folder)}


def channel_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the channels, for pixels in [0, 1], as the model's library says."""
    mean, std = normalization(model, model)
    return as_numbers(mean), as_numbers(std)


def as_numbers(channels: Tensor) -> tuple[float, ...]:
    """Return [3, 1, 1] float32 as the decimal numbers that were rounded to it."""
    return tuple(round(value, 6) for value in channels.flatten().tolist())


def model_input(picture: Image.Image, model: nn.Module, size: int | tuple[int, int]) -> Tensor:
    """Return a picture [1, 3, H, W], cropped to ``size`` and normalised as the model's library says.

    Args:
        model: decides the normalisation, the device and the dtype.
        size: (height, width) in pixels, or the side of a square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    pixels = pil_to_tensor(ImageOps.fit(picture, (width, height)))[None] / 255
    parameter = next(model.parameters())
    return normalize(pixels, *channel_statistics(model)).to(parameter.device, parameter.dtype)


def model_inputs(pictures: list[Image.Image], model: nn.Module, size: int | tuple[int, int]) -> Tensor:
    """Return pictures as one batch [B, 3, H, W]; see ``model_input``."""
    return torch.cat([model_input(picture, model, size) for picture in pictures])
