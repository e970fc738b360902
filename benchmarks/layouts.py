"""Labelled images as their data sets lay them out on disk, checked before anything is run on them.

dataset = open_dataset("ade20k", "data/ADEChallengeData2016")
dataset = open_dataset("folder", "data/camvid/val", ignore=11)  # images/, labels/, and classes.txt if there is one
dataset[0].image, dataset[0].label, dataset.classes; dataset[::10]  # every tenth
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import Cityscapes
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from algm_patch.viz.paint import distinct_colours

Result = TypeVar("Result")

IGNORED = 255  # in the published sets
INVALID = -1  # in a table of labels: a value that must not occur
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
CLASSES = Path(__file__).parent / "classes.json"  # names and colours as mmsegmentation's datasets have them
SHOWN = 10  # files that an error names


class DataError(ValueError):
    """Something on disk is not as its layout says. The message names the file."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        image: [3, H, W] uint8, RGB.
        label: [H, W] int64: the class, or the data set's ``ignore_index``.
        path: of the image.
    """

    image: Tensor
    label: Tensor
    path: Path


@dataclass(frozen=True)
class Pair:
    """Where one labelled image is.

    Attributes:
        image, label: files.
        size: (height, width) in pixels, of both.
        digest: of the image file's content.
    """

    image: Path
    label: Path
    size: tuple[int, int]
    digest: str


@dataclass(frozen=True)
class Dataset:
    """Labelled images. A slice of it is a data set too.

    Attributes:
        name: of the layout, and the folder.
        classes: names, in the order of the labels.
        palette: [C, 3] uint8, RGB.
        ignore_index: the label that does not count; None if all count.
        pairs: the files.
        table: the label that each value in a file stands for, ``INVALID`` for those that must not occur.
    """

    name: str
    classes: tuple[str, ...]
    palette: Tensor
    ignore_index: int | None
    pairs: tuple[Pair, ...]
    table: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            return replace(self, pairs=self.pairs[index])
        pair = self.pairs[index]
        return Sample(self.image(pair), self.label(pair), pair.image)

    def image(self, pair: Pair) -> Tensor:
        """[3, H, W] uint8."""
        return pil_to_tensor(read_image(pair.image).convert("RGB"))

    def label(self, pair: Pair) -> Tensor:
        """[H, W] int64.

        Raises:
            DataError: if the file is no longer what it was when the data set was opened.
        """
        values = read_label(pair.label)
        if values.shape != pair.size or not valid(values, self.table):
            raise DataError(f"{pair.label} has changed since the data set was opened: its size or its values")
        return torch.from_numpy(self.table[values])


def open_dataset(
    layout: str, root: str | Path, split: str = "val", ignore: int | None = None, *, progress: bool = True
) -> Dataset:
    """Find a data set's images and labels, and read every one of them once to see that it can be used.

    Args:
        layout: one of ``LAYOUTS``. "folder": ``images/`` and ``labels/`` (one channel, the class of each pixel),
            matched by stem; ``classes.txt`` beside them, if there is one, has a name a line, and after it a colour
            such as ``#8040ff`` if you like. Without it the classes are as many as the labels hold.
        root: the folder with the layout's first folders in it. "folder": the one with ``images/``, or with a folder
            for each split.
        split: "train" or "val".
        ignore: the label that does not count, for "folder"; the published sets have their own.
        progress: a bar while files are read.

    Raises:
        DataError: a path is not there, an image has no label or the reverse, a file cannot be read to its end, a
            label's size is not its image's or a label is out of range. All files that are wrong are counted, the
            first ten named.
        ValueError: for an unknown layout, or ``ignore`` where the layout says what is ignored.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown. There are: {', '.join(LAYOUTS)}")
    if layout != "folder" and ignore is not None:
        raise ValueError(f"ignore={ignore}: what does not count in {layout!r} is part of its layout. Leave it out")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. It must hold the data set as {layout!r} lays it out")
    return LAYOUTS[layout](root, split, ignore, progress)


# -- layouts: each finds pairs of files, and says what the values in a label file mean


def ade20k(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    root, part = within(root, "ADEChallengeData2016"), {"val": "validation", "train": "training"}.get(split, split)
    images = files(root / "images" / part, (".jpg",))
    files_of = [(image, root / "annotations" / part / f"{image.stem}.png") for image in images]
    return published("ade20k", root, files_of, shifted(150), progress)


def cityscapes(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    """Labels are train ids where those are there, else ids."""
    tail = "_leftImg8bit.png"
    images = files(root / "leftImg8bit" / split, (tail,), deep=True)
    folder = root / "gtFine" / split
    kinds = {
        "labelTrainIds": plain_table(19),
        "labelIds": table_of({c.id: c.train_id for c in Cityscapes.classes}),
    }
    kind = next((kind for kind in kinds if any(folder.glob(f"*/*_gtFine_{kind}.png"))), None)
    if kind is None:
        raise DataError(f"{folder} has neither */*_gtFine_labelTrainIds.png nor */*_gtFine_labelIds.png")
    files_of = [
        (image, folder / image.parent.name / f"{image.name.removesuffix(tail)}_gtFine_{kind}.png") for image in images
    ]
    return published("cityscapes", root, files_of, kinds[kind], progress)


def pascal_context(root: Path, split: str, ignore: int | None, progress: bool, background: bool = True) -> Dataset:
    """60 classes, or 59: the background does not count."""
    root = within(root, "VOCdevkit/VOC2010", "VOC2010")
    listed = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not listed.is_file():
        raise DataError(f"{listed} is not there: the names of the images of the split, one a line")
    names = listed.read_text().split()
    files_of = [
        (root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClassContext" / f"{name}.png") for name in names
    ]
    table = plain_table(60) if background else shifted(59)
    return published("pascal-context", root, files_of, table, progress)


def coco_stuff(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    part = f"{split}2017"
    images = files(root / "images" / part, (".jpg",))
    files_of = [(image, root / "annotations" / part / f"{image.stem}_labelTrainIds.png") for image in images]
    return published("coco-stuff", root, files_of, plain_table(171), progress)


def folder(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    if ignore is not None and not 0 <= ignore < 2**16:
        raise ValueError(f"ignore={ignore}: expected a value that label files can hold, such as 255")
    root = root if (root / "images").is_dir() else within(root, split)
    labels = by_stem(files(root / "labels", LABEL_SUFFIXES))
    images = by_stem(files(root / "images", IMAGE_SUFFIXES))
    alone = {labels[stem]: "has no image" for stem in labels.keys() - images.keys()}
    check_all(alone | {images[stem]: "has no label" for stem in images.keys() - labels.keys()}, len(images))
    files_of = [(image, labels[stem]) for stem, image in images.items()]
    listed = root / "classes.txt"
    named = read_classes(listed) if listed.is_file() else None
    table = plain_table(256 if named is None else len(named), ignore)
    pairs, values = checked(files_of, table, progress)
    if named is None:
        count = max((value for value in values if value != ignore), default=-1) + 1
        if not count:
            raise DataError(f"{root / 'labels'}: every pixel of every label is {ignore}, which does not count")
        named = [(f"class {label}", None) for label in range(count)]
    generated = distinct_colours(len(named))
    palette = [hex_colour(colour) if colour else generated[i] for i, (_, colour) in enumerate(named)]
    return Dataset(
        f"folder {root.name}",
        tuple(name for name, _ in named),
        torch.tensor(palette, dtype=torch.uint8),
        ignore,
        pairs,
        table,
    )


LAYOUTS: dict[str, Callable[[Path, str, int | None, bool], Dataset]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "pascal-context": pascal_context,
    "pascal-context-59": partial(pascal_context, background=False),
    "coco-stuff": coco_stuff,
    "folder": folder,
}


def published(
    layout: str, root: Path, files_of: list[tuple[Path, Path]], table: NDArray[np.int64], progress: bool
) -> Dataset:
    """A data set whose classes are known, in the order of its labels."""
    count = 1 + max(label for label in table.tolist() if label != IGNORED)
    named = list(json.loads(CLASSES.read_text())[layout].items())[-count:]  # without a background that does not count
    pairs, _ = checked(files_of, table, progress)
    palette = torch.tensor([hex_colour(colour) for _, colour in named], dtype=torch.uint8)
    return Dataset(f"{layout} {root.name}", tuple(name for name, _ in named), palette, IGNORED, pairs, table)


# -- finding


def within(root: Path, *folders: str) -> Path:
    """The first of the folders that is in ``root``; ``root`` if none is."""
    return next((root / name for name in folders if (root / name).is_dir()), root)


def files(folder: Path, suffixes: tuple[str, ...], deep: bool = False) -> list[Path]:
    """Files of a folder (deep: of its folders) with one of the endings, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. The layout wants files *{', *'.join(suffixes)} there")
    ends = tuple(map(str.lower, suffixes))
    found = sorted(path for path in folder.glob("*/*" if deep else "*") if path.name.lower().endswith(ends))
    if not found:
        raise DataError(f"{folder} holds no file *{', *'.join(suffixes)}")
    return found


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise DataError(f"{stems[path.stem]} and {path.name} are matched by the same stem. Rename or remove one")
        stems[path.stem] = path
    return stems


def read_classes(path: Path) -> list[tuple[str, str | None]]:
    """Names and colours, one class a line: ``road``, or ``road #804080``."""
    named: list[tuple[str, str | None]] = []
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        name, _, colour = line.rpartition("#")
        if not name:
            named.append((line, None))
            continue
        try:
            hex_colour(f"#{colour}")
        except ValueError:
            raise DataError(f"{path}: {line!r} is neither a name nor a name and a colour such as #8040ff") from None
        named.append((name.strip(), f"#{colour}"))
    if not named:
        raise DataError(f"{path} names no class. One name a line, or remove the file")
    return named


# -- the values of labels


def table_of(labels: dict[int, int]) -> NDArray[np.int64]:
    """[max + 1] label of each value, ``INVALID`` for those that have none."""
    table = np.full(max(labels.keys() | {255}) + 1, INVALID, np.int64)
    for value, label in labels.items():
        if value >= 0:
            table[value] = label
    return table


def plain_table(classes: int, ignore: int | None = IGNORED) -> NDArray[np.int64]:
    """Values are labels."""
    return table_of({label: label for label in range(classes)} | ({} if ignore is None else {ignore: ignore}))


def shifted(classes: int) -> NDArray[np.int64]:
    """Labels begin at value 1; 0 does not count."""
    return table_of({0: IGNORED, **{label + 1: label for label in range(classes)}})


def valid(values: NDArray[np.integer], table: NDArray[np.int64]) -> bool:
    """Whether every value stands for a label."""
    return bool(values.max(initial=0) < len(table) and (table[values] != INVALID).all())


# -- reading and checking


def read_image(path: Path | io.BytesIO) -> Image.Image:
    """Decoded to its end, and turned as the camera says (EXIF), as image libraries and annotation tools do."""
    picture = Image.open(path)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def read_label(path: Path) -> NDArray[np.integer]:
    """[H, W] values of a file with one channel; a palette's indices."""
    picture = Image.open(path)
    if len(picture.getbands()) != 1 or picture.mode == "F":
        raise ValueError(f"mode {picture.mode}, expected one channel with the class of each pixel")
    return np.asarray(picture).astype(np.int64 if picture.mode.startswith("I") else np.uint8, copy=False)


def checked(
    files_of: list[tuple[Path, Path]], table: NDArray[np.int64], progress: bool
) -> tuple[tuple[Pair, ...], list[int]]:
    """The pairs, each read to its end, and the values that occur in the labels.

    Raises:
        DataError: naming the files that cannot be used and why.
    """
    absent = {path: "is not there" for pair in files_of for path in pair if not path.is_file()}
    check_all(absent, len(files_of))
    pairs: list[Pair] = []
    values: set[int] = set()
    problems: dict[Path, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked_at = pool.map(partial(look_at, table=table), files_of)
        for found in tqdm(looked_at, "checking files", len(files_of), unit="image", disable=not progress, leave=False):
            if isinstance(found, FileError):
                problems[found.path] = str(found)
            else:
                pairs.append(found[0])
                values |= found[1]
    check_all(problems, len(files_of))
    return tuple(pairs), sorted(values)


class FileError(ValueError):
    """What is wrong with one file."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(what)
        self.path = path


def look_at(files_of: tuple[Path, Path], table: NDArray[np.int64]) -> tuple[Pair, set[int]] | FileError:
    """One pair and the values of its label, both files read to their end; or what is wrong."""
    image, label = files_of
    try:
        content, size = read_to_end(image)
        values = decoded(label, read_label)
    except FileError as problem:
        return problem
    high, wide = values.shape
    if (high, wide) != size:
        return FileError(label, f"is {wide}x{high} pixels, but its image {image.name} {size[1]}x{size[0]}")
    present = np.flatnonzero(np.bincount(values.ravel())).tolist()
    wrong = [value for value in present if not valid(np.array(value), table)]
    if wrong:
        return FileError(label, f"holds {', '.join(map(str, wrong[:5]))}; allowed are {allowed(table)}")
    return Pair(image, label, size, hashlib.sha256(content).hexdigest()), set(present)


def read_to_end(path: Path) -> tuple[bytes, tuple[int, int]]:
    """An image file's content, and its height and width in pixels."""
    content = path.read_bytes()

    def size(_: Path) -> tuple[int, int]:
        wide, high = read_image(io.BytesIO(content)).size
        return high, wide

    return content, decoded(path, size)


def decoded(path: Path, decode: Callable[[Path], Result]) -> Result:
    try:
        return decode(path)
    except UnidentifiedImageError:
        raise FileError(path, "is not an image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(path, f"cannot be read: {error}") from None


def check_all(problems: dict[Path, str], total: int) -> None:
    """Raise DataError if there are problems, naming the first files."""
    if problems:
        lines = [f"{path} {what}" for path, what in sorted(problems.items())]
        lines = lines[:SHOWN] + [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
        count = "1 file" if len(problems) == 1 else f"{len(problems)} files"
        raise DataError("\n  ".join([f"{count} of {total} images cannot be used:", *lines]))


def allowed(table: NDArray[np.int64]) -> str:
    """The values that a label file may hold, such as "0 to 10, 255"."""
    values = np.flatnonzero(table != INVALID)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# -- colours


def hex_colour(text: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(text))
