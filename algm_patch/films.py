"""What merges in frames that follow each other, as one moving picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .drawing import named_images
from .showing import panels

if TYPE_CHECKING:
    pass

WIDTH = 960  # of the film in pixels


def animate(frames: Any, model: nn.Module, path: str | Path, fps: float = 10) -> Path:
    """Write a GIF: of each frame the image, and beside it the groups after the last merge.

    Args:
        frames: a folder, whose images are taken by name; or images as for :func:`panels`, or paths of images.
        model: patched.
        path: ends in ".gif". Written whole or not at all.
        fps: frames a second, at most 50, which is what viewers show.

    Returns:
        The path.

    Raises:
        ValueError: if there is no frame, or ``path`` or ``fps`` is not as above.
        OSError: if a file cannot be read as an image.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path ends in .gif; got {path.name}")
    if not 0 < fps <= 50:
        raise ValueError(f"fps is above 0 and at most 50, got {fps}")
    pictures = film(frames, model)
    first = next(pictures, None)
    if first is None:
        raise ValueError("animate got no frames")
    unfinished = path.with_suffix(".unfinished")
    first.save(unfinished, "GIF", save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0)
    unfinished.replace(path)
    return path


def film(frames: Any, model: nn.Module) -> Any:
    from PIL import Image

    size = None
    for _, frame in named_images(frames):
        shown = list(panels(frame, model).values())
        both = Image.fromarray(np.concatenate([shown[0], shown[-1]], 1))
        size = size or (WIDTH, round(WIDTH * both.height / both.width))
        yield both.resize(size)
