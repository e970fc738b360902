"""Images with their names: of a folder, of paths, or as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def named_images(images: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and images.

    Args:
        images: a folder: its image files, by the numbers in their names, 2 before 10. Or an iterable of paths, which
            are read upright in RGB, and of images of any other kind, which stay as they are and are named by their
            place: "1", "2", ...

    Raises:
        OSError: if a file cannot be read as an image, or the folder is not there.
    """
    from PIL import Image, ImageOps

    if isinstance(images, (str, Path)):
        images = image_files(Path(images))
    for number, image in enumerate(images, 1):
        if isinstance(image, (str, Path)):
            with Image.open(image) as opened:
                yield Path(image).name, ImageOps.exif_transpose(opened).convert("RGB")
        else:
            yield f"{number}", image


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, by the numbers in their names."""
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES), key=by_number)


def by_number(path: Path) -> tuple[list[str | int], str]:
    """Return a key that sorts files by the numbers in their names, 2 before 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name
