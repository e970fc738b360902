"""Open labelled images as their data sets lay them out on disk.

dataset = open_dataset("ade20k", "data/ADEChallengeData2016")
dataset = open_dataset("folder", "data/camvid/val", ignore=11)  # images/, labels/, and classes.txt if there is one
dataset[0].image, dataset[0].label, dataset.classes; dataset[::10]  # every tenth
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.colors import to_rgb
from torchvision.datasets import Cityscapes

from algm_patch.viz.paint import distinct_colours

from .checking import by_stem, checked_pairs, find_files, first_folder, refuse_problems
from .dataset import DataError, Dataset
from .labels import IGNORED, Table, identity_table, shifted_table, table_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
CLASSES = Path(__file__).parent / "classes.json"  # names and colours as mmsegmentation's data sets have them


def open_dataset(
    layout: str, root: str | Path, split: str = "val", ignore: int | None = None, *, progress: bool = True
) -> Dataset:
    """Find the images and labels of a data set, and read each of them once to see that it can be used.

    Args:
        layout: one of ``LAYOUTS``. "folder": ``images/`` and ``labels/`` (one channel, the class of each pixel),
            matched by stem. ``classes.txt`` beside them, if there is one, has a name a line, and optionally a colour
            such as ``#8040ff`` after it. Without it there are as many classes as the labels hold.
        root: the folder that holds the layout's first folders. "folder": the one that holds ``images/``, or a folder
            for each split.
        split: "train" or "val".
        ignore: the label that does not count, for "folder". The published data sets have their own.
        progress: show a bar while files are read.

    Raises:
        DataError: if a path is missing, an image has no label or the reverse, a file cannot be read to its end, the
            sizes of image and label differ, or a label is out of range. It counts the files and names the first ten.
        ValueError: if the layout is unknown, or ``ignore`` is given where the layout has its own.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown. There are: {', '.join(LAYOUTS)}")
    if layout != "folder" and ignore is not None:
        raise ValueError(f"ignore={ignore}: the ignored label of {layout!r} is part of its layout. Leave it out")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. It must hold the data set as {layout!r} lays it out")
    return LAYOUTS[layout](root, split, ignore, progress)


def ade20k(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    """Open ADE20K as the scene-parsing challenge of 2016 published it."""
    root, part = (
        first_folder(root, "ADEChallengeData2016"),
        {"val": "validation", "train": "training"}.get(split, split),
    )
    images = find_files(root / "images" / part, (".jpg",))
    paths = [(image, root / "annotations" / part / f"{image.stem}.png") for image in images]
    return published("ade20k", root, paths, shifted_table(150), progress)


def cityscapes(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    """Open Cityscapes. Its labels are train ids if there are such files, or else ids."""
    ending = "_leftImg8bit.png"
    images = find_files(root / "leftImg8bit" / split, (ending,), deep=True)
    folder = root / "gtFine" / split
    tables = {
        "labelTrainIds": identity_table(19),
        "labelIds": table_of({c.id: c.train_id for c in Cityscapes.classes}),
    }
    kind = next((kind for kind in tables if any(folder.glob(f"*/*_gtFine_{kind}.png"))), None)
    if kind is None:
        raise DataError(f"{folder} has neither */*_gtFine_labelTrainIds.png nor */*_gtFine_labelIds.png")
    paths = [
        (image, folder / image.parent.name / f"{image.name.removesuffix(ending)}_gtFine_{kind}.png") for image in images
    ]
    return published("cityscapes", root, paths, tables[kind], progress)


def pascal_context(root: Path, split: str, ignore: int | None, progress: bool, background: bool = True) -> Dataset:
    """Open Pascal-Context with 60 classes, or with 59 and an ignored background."""
    root = first_folder(root, "VOCdevkit/VOC2010", "VOC2010")
    names_file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not names_file.is_file():
        raise DataError(f"{names_file} is not there: the names of the images of the split, one a line")
    names = names_file.read_text().split()
    paths = [(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClassContext" / f"{name}.png") for name in names]
    table = identity_table(60) if background else shifted_table(59)
    return published("pascal-context", root, paths, table, progress)


def coco_stuff(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    """Open COCO-Stuff with 171 classes, whose labels mmsegmentation's conversion wrote."""
    part = f"{split}2017"
    images = find_files(root / "images" / part, (".jpg",))
    paths = [(image, root / "annotations" / part / f"{image.stem}_labelTrainIds.png") for image in images]
    return published("coco-stuff", root, paths, identity_table(171), progress)


def published(layout: str, root: Path, paths: list[tuple[Path, Path]], table: Table, progress: bool) -> Dataset:
    """Return a data set whose classes are known, in the order of its labels."""
    count = 1 + max(label for label in table.tolist() if label != IGNORED)
    named = list(json.loads(CLASSES.read_text())[layout].items())[-count:]  # without a background that is ignored
    pairs, _ = checked_pairs(paths, table, progress)
    palette = torch.tensor([rgb(colour) for _, colour in named], dtype=torch.uint8)
    return Dataset(f"{layout} {root.name}", tuple(name for name, _ in named), palette, IGNORED, pairs, table)


def folder(root: Path, split: str, ignore: int | None, progress: bool) -> Dataset:
    """Open images and labels of your own."""
    if ignore is not None and not 0 <= ignore < 2**16:
        raise ValueError(f"ignore={ignore}: expected a value that label files can hold, such as 255")
    root = root if (root / "images").is_dir() else first_folder(root, split)
    labels = by_stem(find_files(root / "labels", LABEL_SUFFIXES))
    images = by_stem(find_files(root / "images", IMAGE_SUFFIXES))
    alone = {labels[stem]: "has no image" for stem in labels.keys() - images.keys()}
    refuse_problems(alone | {images[stem]: "has no label" for stem in images.keys() - labels.keys()}, len(images))
    paths = [(image, labels[stem]) for stem, image in images.items()]
    classes_file = root / "classes.txt"
    named = read_classes(classes_file) if classes_file.is_file() else None
    table = identity_table(256 if named is None else len(named), ignore)
    pairs, values = checked_pairs(paths, table, progress)
    if named is None:
        count = max((value for value in values if value != ignore), default=-1) + 1
        if not count:
            raise DataError(f"{root / 'labels'}: every pixel of every label is {ignore}, which does not count")
        named = [(f"class {label}", None) for label in range(count)]
    generated = distinct_colours(len(named))
    palette = [rgb(colour) if colour else tuple(generated[i]) for i, (_, colour) in enumerate(named)]
    names = tuple(name for name, _ in named)
    return Dataset(f"folder {root.name}", names, torch.tensor(palette, dtype=torch.uint8), ignore, pairs, table)


LAYOUTS: dict[str, Callable[[Path, str, int | None, bool], Dataset]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "pascal-context": pascal_context,
    "pascal-context-59": partial(pascal_context, background=False),
    "coco-stuff": coco_stuff,
    "folder": folder,
}


def read_classes(path: Path) -> list[tuple[str, str | None]]:
    """Return the names and colours of classes, one a line: ``road``, or ``road #804080``."""
    named: list[tuple[str, str | None]] = []
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        name, _, colour = line.rpartition("#")
        if not name:
            named.append((line, None))
            continue
        try:
            rgb(f"#{colour}")
        except ValueError:
            raise DataError(f"{path}: {line!r} is neither a name nor a name and a colour such as #8040ff") from None
        named.append((name.strip(), f"#{colour}"))
    if not named:
        raise DataError(f"{path} names no class. Write one name a line, or remove the file")
    return named


def rgb(colour: str) -> tuple[int, ...]:
    """Return a colour such as ``#8040ff`` as numbers from 0 to 255."""
    return tuple(round(255 * part) for part in to_rgb(colour))
