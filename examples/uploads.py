"""Read images that visitors upload, and say what is wrong with those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LEAST = 32  # pixels of a side
MOST = 64_000_000  # pixels of an image
SHOWN = 1024  # pixels of the longer side of what is worked on


class RefusedError(ValueError):
    """Tell the visitor why an upload cannot be used."""


def read(path: str | Path) -> Image.Image:
    """Return an image in RGB, upright, at most 1024 pixels a side; of several frames the first.

    Raises:
        RefusedError: if it is no image that can be read, too small or too large.
    """
    try:
        with Image.open(path) as opened:
            wide, high = opened.size
            if min(wide, high) < LEAST:
                raise RefusedError(f"The image is {wide}×{high} pixels. It needs at least {LEAST} on each side.")
            if wide * high > MOST:
                raise RefusedError(
                    f"The image is {wide}×{high} pixels. At most {MOST // 1_000_000} megapixels, please."
                )
            picture = ImageOps.exif_transpose(opened)
            picture.thumbnail((SHOWN, SHOWN))
            return opaque(picture)
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(f"The image is too large. At most {MOST // 1_000_000} megapixels, please.") from None
    except (OSError, SyntaxError, ValueError):
        raise RefusedError("This is not an image that can be read. JPEG, PNG and WebP work.") from None


def opaque(picture: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB: 16 bits scaled to 8, transparent pixels on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        scale = 255 / max(values.max(), 255 if values.max() <= 255 else 65535)
        picture = Image.fromarray((values.clip(0) * scale).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
