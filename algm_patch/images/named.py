"""Images with their names: of a folder, of paths, or as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from ..warning import warn_user
from .reading import ImageError, open_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def named_images(images: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and images.

    Args:
        images: a folder: its image files, by the numbers in their names, 2 before 10; those that cannot be read are
            left out, with a warning. Or an iterable of paths, and of images of any other kind, which stay as they are
            and are named by their place: "1", "2", ... Files are read upright in RGB.

    Raises:
        ImageError: if a path's file, or every file of a folder, cannot be read as an image.
        OSError: if the folder or a file is not there.
        ValueError: if a folder holds no image file, or ``images`` is one image or file.
    """
    if isinstance(images, (str, PathLike)):
        if Path(images).is_file():
            raise ValueError(f"{images} is one file, where several images are expected. Give a folder, or a list")
        yield from images_of(Path(images))
        return
    if hasattr(images, "convert") or getattr(images, "ndim", None) == 3:
        raise ValueError(
            f"one image, where several are expected: got a {type(images).__name__}. Give a folder, or a list"
        )
    for number, image in enumerate(images, 1):
        if isinstance(image, (str, PathLike)):
            yield Path(image).name, open_image(image)
        else:
            yield f"{number}", image


def images_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the names and images of a folder, as `named_images`."""
    paths, read = image_files(folder), 0
    for path in paths:
        try:
            image = open_image(path)
        except OSError as error:  # an ImageError, or no permission to read
            broken = error
            warn_user(f"{error}. It is left out")
            continue
        read += 1
        yield path.name, image
    if not read:
        raise ImageError(folder, f"holds no image that can be read. The last of its {len(paths)}: {broken}")


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, by the numbers in their names.

    Raises:
        OSError: if the folder is not there.
        ValueError: if it holds none.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise ValueError(f"{folder} holds no images: no file that ends in {', '.join(SUFFIXES)}")
    return sorted(paths, key=by_number)


def by_number(path: Path) -> tuple[list[str | int], str]:
    """Return a key that sorts files by the numbers in their names, 2 before 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name
