"""Read image files, and make them inputs of DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from algm_patch.images import reading
from algm_patch.images.prepare import as_input

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SIDE, PATCH = 518, 14  # of an image and of a patch, in pixels


def open_image(path: Path | None) -> Image.Image:
    """Return an image file upright in RGB; None: scikit-image's astronaut.

    Raises:
        SystemExit: if the file cannot be read as an image.
    """
    if path is None:
        from skimage.data import astronaut

        return Image.fromarray(astronaut())
    try:
        return reading.open_image(path)
    except OSError as error:
        raise SystemExit(f"error: {error}") from error


def to_input(picture: Image.Image) -> Tensor:
    """Return [1, 3, H, W], normalised: about 518 x 518 pixels in the picture's proportions, sides multiples of 14."""
    scale = SIDE / (picture.width * picture.height) ** 0.5
    sides = [max(PATCH, round(side * scale / PATCH) * PATCH) for side in (picture.height, picture.width)]
    return normalise(picture, sides)


def normalise(picture: Image.Image, sides: Sequence[int]) -> Tensor:
    """Return [1, 3, H, W] with the sides (H, W), normalised by ImageNet's mean and standard deviation."""
    return as_input(picture, sides, MEAN, STD)
