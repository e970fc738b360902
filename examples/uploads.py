"""Read images that visitors upload, and say what is wrong with those that cannot be used."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from algm_patch.images.reading import ImageError, open_image

SHOWN = 1024  # pixels of the longer side of what is worked on


class RefusedError(ValueError):
    """Tell the visitor why an upload cannot be used."""


def read(path: str | Path) -> Image.Image:
    """Return an image in RGB, upright, at most 1024 pixels a side; of several frames the first.

    Raises:
        RefusedError: if it is no image that can be read, too small or too large.
    """
    try:
        picture = open_image(path)
    except ImageError as error:
        raise RefusedError(f"The upload {error.problem}.") from None
    picture.thumbnail((SHOWN, SHOWN))
    return picture
