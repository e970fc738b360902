"""The one reader of image files: whatever is in a file becomes RGB of 8 bits, or an error says why not."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 32  # pixels of a side
MOST = 64_000_000  # pixels of an image
# White in images of more than 8 bits: in modes that say so, else the least of these that no value exceeds. Floating
# point numbers up to 1 may exceed it a little.
SIXTEEN_BITS = 65535
WHITES = (1.1, 255, SIXTEEN_BITS)


class ImageError(OSError):
    """Report a file that cannot be used as an image.

    Attributes:
        problem: the message without the file's path.
    """

    def __init__(self, path: str | PathLike[str], problem: str) -> None:
        super().__init__(f"{path} {problem}")
        self.problem = problem


def open_image(path: str | PathLike[str]) -> Image:
    """Return an image file in RGB, upright; of several frames the first.

    Raises:
        ImageError: naming the file, if it cannot be read, or is too small or too large.
        OSError: if the file is not there or cannot be opened.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            check_size(path, *opened.size)
            return upright_rgb(opened)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(path, "is not an image that can be read: JPEG, PNG, WebP, TIFF and BMP are") from None
    except Image.DecompressionBombError:
        raise ImageError(path, f"is too large: at most {MOST // 1_000_000} megapixels") from None
    except Exception as error:  # each decoder raises errors of its own
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ImageError(path, f"is damaged: {error}") from None


def check_size(path: str | PathLike[str], wide: int, high: int) -> None:
    """Raise ImageError if an image of this size cannot be used."""
    if min(wide, high) < LEAST:
        raise ImageError(path, f"is {wide}×{high} pixels: at least {LEAST} are needed on each side")
    if wide * high > MOST:
        raise ImageError(path, f"is {wide}×{high} pixels: at most {MOST // 1_000_000} megapixels")


def upright_rgb(picture: Image) -> Image:
    """Return an image of any mode in RGB, turned as its EXIF orientation says."""
    from PIL import ImageOps

    return opaque(ImageOps.exif_transpose(picture))


def opaque(picture: Image) -> Image:
    """Return an image of any mode in RGB: more than 8 bits are scaled to 8, transparent pixels are on white."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        white = SIXTEEN_BITS if picture.mode.startswith("I;16") else None
        picture = Image.fromarray(in_8_bits(np.asarray(picture, np.float64), white))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def in_8_bits(values: np.ndarray, white: float | None = None) -> np.ndarray:
    """Return values as uint8, white as 255.

    Args:
        white: None: the least of ``WHITES`` that no value exceeds, or the largest value.
    """
    values = np.nan_to_num(values, posinf=0, neginf=0).clip(0)
    largest = values.max(initial=0)
    if white is None:
        white = next((white for white in WHITES if largest <= white), largest)
    return (values * (255 / max(1, int(white)))).round().clip(0, 255).astype(np.uint8)
