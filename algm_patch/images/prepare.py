"""Preparation of inputs: an image resized and normalised as the model, or the library it comes from, says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .normalization import WHITE, as_channels, normalization
from .reading import upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

# The longer side of a picture in pixels: larger ones are made smaller first.
LARGEST = 2048


def prepare(model: nn.Module, image: Any, trunk: Any = None) -> tuple[Tensor, NDArray[Any]]:
    """Return the model's input [1, 3, h, w] of an image, and the image as a picture [H, W, 3] uint8.

    Args:
        image: as for ``algm_patch.viz.panels``. A picture is resized to the model's own input size: to keep its
            proportions, pass a tensor.
        trunk: the ViT in the model. Default: the model itself.

    Raises:
        TypeError, ValueError: if ``image`` is not one image.
    """
    trunk = model if trunk is None else trunk
    mean, std = normalization(model, trunk)
    if isinstance(image, np.ndarray):
        from PIL import Image

        try:
            image = Image.fromarray(image)
        except TypeError:
            raise TypeError(f"an image as an array is uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}") from None
    if hasattr(image, "convert"):
        picture = upright_rgb(image)
        tensor = as_input(picture, input_size(trunk), mean, std)
        picture.thumbnail((LARGEST, LARGEST))
        return tensor, np.array(picture)
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a tensor, a PIL image or a uint8 array [H, W, 3]; got {type(image)}")
    tensor = image[None] if image.dim() == 3 else image
    if tensor.dim() != 4 or tensor.shape[:2] != (1, 3):
        raise ValueError(f"image is one image, [3, H, W] or [1, 3, H, W]; got {list(image.shape)}")
    pixels = (tensor[0].detach().float().cpu() * std + mean).clamp(0, 1) * WHITE
    return tensor, pixels.round().byte().permute(1, 2, 0).numpy()


def as_input(picture: Image, size: Sequence[int], mean: Any, std: Any) -> Tensor:
    """Return a picture in RGB as an input [1, 3, H, W], resized with antialiasing and normalised.

    Args:
        size: (H, W) in pixels; other proportions than the picture's stretch it.
        mean, std: of the channels, for pixels from 0 to 1: one number for each, or one for all.
    """
    if max(picture.size) > LARGEST:  # in floating point a large photograph takes gigabytes
        picture = picture.copy()
        picture.thumbnail((LARGEST, LARGEST))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / WHITE
    pixels = nn.functional.interpolate(pixels, tuple(size), mode="bilinear", antialias=True)
    return (pixels - as_channels(mean)) / as_channels(std)


def input_size(trunk: Any) -> tuple[int, int]:
    """Return height and width in pixels of the model's own input, which may not be that of its checkpoint."""
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    size = size or getattr(getattr(trunk, "config", None), "image_size", None)
    if size is None:
        import timm.data

        size = timm.data.resolve_model_data_config(trunk)["input_size"][1:]
    high, wide = (size, size) if isinstance(size, int) else size
    return high, wide


def pixels_per_token(trunk: Any, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels of a token.

    Args:
        grid: height and width of the input in tokens.
        size: height and width of the input in pixels. If the model does not tell the size of a token, it is this size
            divided by the grid.
    """
    embedding: Any = getattr(trunk, "patch_embed", None)
    if hasattr(embedding, "feat_ratio"):
        high, wide = embedding.feat_ratio(as_scalar=False)
        return high, wide
    return -(-size[0] // grid[0]), -(-size[1] // grid[1])
