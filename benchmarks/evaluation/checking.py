"""Find the files of a data set, and read each of them once to see that it can be used."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from .dataset import DataError, Pair, read_image, read_label
from .labels import Table, all_valid, allowed_values

Result = TypeVar("Result")

SHOWN = 10  # files that an error names


class FileError(ValueError):
    """Report what is wrong with one file."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def find_files(folder: Path, suffixes: tuple[str, ...], deep: bool = False) -> list[Path]:
    """Return the files of a folder with one of the endings, sorted by name.

    Args:
        deep: look in the folders of the folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. The layout wants files *{', *'.join(suffixes)} there")
    ends = tuple(map(str.lower, suffixes))
    found = sorted(path for path in folder.glob("*/*" if deep else "*") if path.name.lower().endswith(ends))
    if not found:
        raise DataError(f"{folder} holds no file *{', *'.join(suffixes)}")
    return found


def first_folder(root: Path, *names: str) -> Path:
    """Return the first of the folders that ``root`` holds; ``root`` if it holds none of them."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return paths by the stem of their name."""
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise DataError(f"{stems[path.stem]} and {path.name} are matched by the same stem. Rename or remove one")
        stems[path.stem] = path
    return stems


def checked_pairs(paths: list[tuple[Path, Path]], table: Table, progress: bool) -> tuple[tuple[Pair, ...], list[int]]:
    """Read images and their labels to the end; return them, and the values that occur in the labels.

    Raises:
        DataError: naming the files that cannot be used and why.
    """
    absent = {path: "is not there" for pair in paths for path in pair if not path.is_file()}
    refuse_problems(absent, len(paths))
    pairs: list[Pair] = []
    values: set[int] = set()
    problems: dict[Path, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(partial(check_pair, table=table), paths)
        for result in tqdm(found, "checking files", len(paths), unit="image", disable=not progress, leave=False):
            if isinstance(result, FileError):
                problems[result.path] = str(result)
            else:
                pairs.append(result[0])
                values |= result[1]
    refuse_problems(problems, len(paths))
    return tuple(pairs), sorted(values)


def check_pair(paths: tuple[Path, Path], table: Table) -> tuple[Pair, set[int]] | FileError:
    """Read an image and its label to the end; return the pair and the values of the label, or what is wrong."""
    image, label = paths
    try:
        content, size = read_to_end(image)
        values = decoded(label, read_label)
    except FileError as problem:
        return problem
    height, width = values.shape
    if (height, width) != size:
        return FileError(label, f"is {width}x{height} pixels, but its image {image.name} {size[1]}x{size[0]}")
    present = np.flatnonzero(np.bincount(values.ravel())).tolist()
    wrong = [value for value in present if not all_valid(np.array(value), table)]
    if wrong:
        return FileError(label, f"holds {', '.join(map(str, wrong[:5]))}; allowed are {allowed_values(table)}")
    return Pair(image, label, size, hashlib.sha256(content).hexdigest()), set(present)


def read_to_end(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return the content of an image file, and the height and width in pixels."""
    content = path.read_bytes()

    def size(_: Path) -> tuple[int, int]:
        width, height = read_image(io.BytesIO(content)).size
        return height, width

    return content, decoded(path, size)


def decoded(path: Path, decode: Callable[[Path], Result]) -> Result:
    """Return what ``decode`` makes of a file; raise FileError if it cannot."""
    try:
        return decode(path)
    except UnidentifiedImageError:
        raise FileError(path, "is not an image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(path, f"cannot be read: {error}") from None


def refuse_problems(problems: dict[Path, str], total: int) -> None:
    """Raise DataError if there are problems. It counts them and names the first files."""
    if problems:
        lines = [f"{path} {problem}" for path, problem in sorted(problems.items())]
        lines = lines[:SHOWN] + [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
        count = "1 file" if len(problems) == 1 else f"{len(problems)} files"
        raise DataError("\n  ".join([f"{count} of {total} images cannot be used:", *lines]))
