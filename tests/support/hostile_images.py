"""Image files of every kind, each with the picture in it, and files that no reader can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HIGH, WIDE = 60, 80
ORIENTATION = 274  # the number of this EXIF tag
Pixels = NDArray[Any]


def blocks(*shape: int) -> Pixels:
    """Return random uint8 [60, 80, ...], alike in 4×4 pixels."""
    found = np.random.default_rng(0).integers(0, 256, (HIGH // 4, WIDE // 4, *shape), np.uint8)
    return found.repeat(4, 0).repeat(4, 1)


COLOURS, GREY = blocks(3), blocks()
GREY_RGB = np.stack([GREY] * 3, -1)
LEFT = (np.arange(WIDE) < WIDE // 2)[None].repeat(HIGH, 0)
ALPHA = np.where(LEFT, 0, 255).astype(np.uint8)


def on_white(picture: Pixels, transparent: Pixels) -> Pixels:
    return np.where(transparent[..., None], np.uint8(255), picture)


def saved(pixels: Pixels, path: Path, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def paletted(path: Path, **options: Any) -> Path:
    image = Image.fromarray(GREY)
    image.putpalette(np.random.default_rng(1).integers(0, 255, 768, np.uint8).tobytes())
    image.save(path, **options)
    return path


def palette_colours() -> Pixels:
    return np.random.default_rng(1).integers(0, 255, 768, np.uint8).reshape(256, 3)[GREY]


def print_colours() -> Image.Image:
    return Image.fromarray(COLOURS).convert("CMYK")


def print_file(path: Path) -> Path:
    print_colours().save(path)
    return path


def turned(path: Path, orientation: int, turns: int) -> Path:
    """Write an image that this EXIF orientation turns upright, by quarter turns to the left."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(np.rot90(COLOURS, -turns), path, exif=exif)


def of_frames(path: Path) -> Path:
    frames = [Image.new("RGB", (WIDE, HIGH), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    saved(np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), np.uint8), path)
    return written(path, path.read_bytes()[:2000])


# By kind: what writes a file into a folder, and the picture in it.
READABLE: dict[str, tuple[Callable[[Path], Path], Pixels]] = {
    "16 bits": (lambda to: saved(GREY.astype(np.uint16) * 257, to / "x.png"), GREY_RGB),
    "32 bits": (lambda to: saved(GREY.astype(np.int32) * 257, to / "x.tif"), GREY_RGB),
    "floating point": (lambda to: saved((GREY / 255).astype(np.float32), to / "x.tif"), GREY_RGB),
    "grey": (lambda to: saved(GREY, to / "x.png"), GREY_RGB),
    "black and white": (lambda to: saved(LEFT, to / "x.png"), np.stack([LEFT * np.uint8(255)] * 3, -1)),
    "alpha": (lambda to: saved(np.dstack([COLOURS, ALPHA]), to / "x.png"), on_white(COLOURS, LEFT)),
    "grey with alpha": (lambda to: saved(np.dstack([GREY, ALPHA]), to / "x.png"), on_white(GREY_RGB, LEFT)),
    "palette": (lambda to: paletted(to / "x.png"), palette_colours()),
    "transparent palette": (
        lambda to: paletted(to / "x.png", transparency=int(GREY[0, 0])),
        on_white(palette_colours(), GREY[0, 0] == GREY),
    ),
    "print colours": (lambda to: print_file(to / "x.tif"), np.asarray(print_colours().convert("RGB"))),
    "upside down": (lambda to: turned(to / "x.png", 3, 2), COLOURS),
    "lying on the left": (lambda to: turned(to / "x.png", 6, 3), COLOURS),
    "lying on the right": (lambda to: turned(to / "x.tif", 8, 1), COLOURS),
    "two frames": (lambda to: of_frames(to / "x.tif"), np.full((HIGH, WIDE, 3), (255, 0, 0), np.uint8)),
}
# By kind: what writes a file into a folder, and a part of the error.
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut off": (lambda to: cut(to / "x.png"), "is damaged"),
    "cut off JPEG": (lambda to: cut(to / "x.jpg"), "is damaged: image file is truncated"),
    "text": (lambda to: written(to / "x.png", b"no image"), "is not an image"),
    "empty": (lambda to: written(to / "x.jpg", b""), "is not an image"),
    "one pixel": (lambda to: saved(COLOURS[:1, :1], to / "x.png"), "is 1×1 pixels: at least 32"),
    "a line": (lambda to: saved(np.zeros((10, 20_000), np.uint8), to / "x.png"), "is 20000×10 pixels: at least 32"),
    "large": (lambda to: saved(np.zeros((9000, 9000), np.bool_), to / "x.png"), "is 9000×9000 pixels: at most 64"),
    "very large": (lambda to: saved(np.zeros((10_000, 18_000), np.bool_), to / "x.png"), "at most 64 megapixels"),
}
