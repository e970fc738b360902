"""Contact sheets: what merges in each of many images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..deprecated import model_first
from ..images.named import named_images
from .figure import SIZES, draw_panel
from .groups import CAPTION
from .layout import Notes, new_sheet
from .view import look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@model_first
def contact_sheet(model: nn.Module, images: Any, columns: int = 4) -> Figure:
    """Draw the groups that the last layer leaves of many images, with their names and numbers of patch tokens.

    Args:
        model: patched.
        images: a folder, whose images are taken by the numbers in their names, 2 before 10; or an iterable of images
            as for ``algm_patch.viz.panels``, or of paths of images.
        columns: images in a row.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there is no image; or as ``algm_patch.viz.panels``.
        OSError: if a file cannot be read as an image.
    """
    cells = []
    for name, image in named_images(images):
        groups, count = look(model, image).last_groups
        cells.append((f"{name}\n{count}", groups))
    if not cells:
        raise ValueError("contact_sheet got no images. Give a folder with images in it, or a list of images")
    figure, axes = new_sheet(len(cells), cells[0][1].shape, columns, Notes("", [SIZES], CAPTION))
    for each, (title, groups) in zip(axes, cells, strict=True):
        draw_panel(each, groups, title)
    return figure
