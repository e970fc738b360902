"""Films: what merges in frames that follow each other, as a GIF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..deprecated import model_first
from ..files import written_whole
from ..images.named import named_images
from .figure import SIZES, draw_panel
from .groups import CAPTION
from .layout import Notes, new_sheet
from .view import View, look

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 960  # of a film in pixels


@model_first
def animate(model: nn.Module, frames: Any, path: str | Path, fps: float = 10) -> Path:
    """Write a GIF that shows each frame and, beside it, the groups that the last layer leaves, with their number.

    Args:
        model: patched.
        frames: a folder, whose images are taken by the numbers in their names, 2 before 10; or an iterable of images
            as for ``algm_patch.viz.panels``, or of paths of images. Frames of other proportions than the first
            get white margins.
        path: ends in ".gif". The file is written whole or not at all: after an error or an interrupt, a file that was
            there before is still there.
        fps: frames a second, at most 50, which is the most that viewers show.

    Returns:
        The path.

    Raises:
        ValueError: if there is no frame, or ``path`` or ``fps`` is not as above; or as ``algm_patch.viz.panels``.
        OSError: if a file cannot be read as an image, or the folder of ``path`` is not there.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path ends in .gif; got {path.name}")
    if not 0 < fps <= 50:
        raise ValueError(f"fps is above 0 and at most 50, got {fps}")
    with written_whole(path) as unfinished:
        pictures = film(model, frames)
        first = next(pictures, None)
        if first is None:
            raise ValueError("animate got no frames. Give a folder with images in it, or a list of images")
        first.save(unfinished, "GIF", save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0)
    return path


def film(model: nn.Module, frames: Any) -> Iterator[Image]:
    """Yield each frame beside its groups, all at the size of the first."""
    shape = None
    for name, frame in named_images(frames):
        view = look(model, frame)
        shape = shape or view.picture.shape
        yield draw_frame(name, view, shape)


def draw_frame(name: str, view: View, shape: tuple[int, ...]) -> Image:
    """Return a frame and its groups side by side, with what their colours mean.

    Args:
        shape: of a panel: height and width in pixels come first. Frames of other proportions get margins.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure, axes = new_sheet(2, shape, 2, Notes("", [SIZES], CAPTION))
    groups, count = view.last_groups
    draw_panel(axes[0], view.picture, name)
    draw_panel(axes[1], groups, f"groups after the last layer\n{count}")
    figure.set_dpi(WIDTH / figure.get_size_inches()[0])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return drawn.quantize(method=Image.Quantize.FASTOCTREE)  # by default, colours of small areas get lost
