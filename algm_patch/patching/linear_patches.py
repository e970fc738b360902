"""Read the grid where an image is cut into patches and a linear layer makes tokens of them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from .runtime import Runtime


def note_image(runtime: Runtime, inputs: tuple[Any, ...]) -> None:
    """Note the shape of the image that the module around a linear layer is given, among its inputs."""
    images = [x.shape for x in inputs if isinstance(x, Tensor) and x.dim() == 4]
    runtime.passes.image = images[0] if images else None


def grid_of_patches(runtime: Runtime, projection: nn.Linear, output: Tensor) -> tuple[int, int]:
    """Return (H, W) of square patches without overlap, each of which the projection takes as one vector.

    Raises:
        ValueError: if the image is not known, or has another number of such patches.
    """
    image, runtime.passes.image = runtime.passes.image, None
    patches = projection.in_features
    if image is None:
        raise ValueError(
            f"the linear patch projection of {runtime.model_name} ran, but the module around it was given no image "
            "[B, C, H, W], so ALGM does not know the grid of its patches. Give it the image, or call remove_algm first"
        )
    side = math.isqrt(patches // image[1])
    grid = (image[2] // side, image[3] // side) if side else (0, 0)
    if output.dim() == 4 and (output.shape[1], output.shape[2]) == grid:
        return grid
    if side * side * image[1] != patches or output.dim() != 3 or output.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"the linear patch projection of {runtime.model_name} left {list(output.shape)} of an image {list(image)}, "
            f"where ALGM reads [B, N, D] with one token for each square of {patches} numbers. It needs the whole grid "
            "of square patches, without overlap and padding. Call remove_algm(model) for other images"
        )
    return grid
