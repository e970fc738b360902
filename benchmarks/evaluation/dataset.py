"""Hold labelled images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from algm_patch.images.reading import upright_rgb

from .labels import Table, all_valid


class DataError(ValueError):
    """Report a file or folder that is not as its layout says. The message names it."""


@dataclass(frozen=True)
class Sample:
    """Hold one labelled image.

    Attributes:
        image: [3, H, W] uint8, RGB.
        label: [H, W] int64: the class, or the data set's ``ignore_index``.
        path: path of the image.
    """

    image: Tensor
    label: Tensor
    path: Path


@dataclass(frozen=True)
class Pair:
    """Hold the files of one labelled image.

    Attributes:
        image, label: paths.
        size: (height, width) in pixels, the same for both.
        digest: SHA-256 of the image file.
    """

    image: Path
    label: Path
    size: tuple[int, int]
    digest: str


@dataclass(frozen=True)
class Dataset:
    """Hold labelled images. A slice of a data set is a data set.

    Attributes:
        name: the layout and the folder.
        classes: names, in the order of the labels.
        palette: [C, 3] uint8, RGB.
        ignore_index: the label that does not count; None if all count.
        pairs: the files.
        table: the label of each value in a label file; see ``labels.py``.
    """

    name: str
    classes: tuple[str, ...]
    palette: Tensor
    ignore_index: int | None
    pairs: tuple[Pair, ...]
    table: Table

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
        """Return the image [3, H, W] uint8."""
        return pil_to_tensor(read_image(pair.image))

    def label(self, pair: Pair) -> Tensor:
        """Return the label [H, W] int64.

        Raises:
            DataError: if the file has changed since the data set was opened.
        """
        values = read_label(pair.label)
        if values.shape != pair.size or not all_valid(values, self.table):
            raise DataError(f"{pair.label} has changed since the data set was opened: its size or its values")
        return torch.from_numpy(self.table[values])


def read_image(file: Path | io.BytesIO) -> Image.Image:
    """Return an image of any size in RGB, turned as its EXIF orientation says."""
    return upright_rgb(Image.open(file))


def read_label(path: Path) -> NDArray[np.integer]:
    """Read the values [H, W] of a file with one channel; of a palette image, the indices."""
    picture = Image.open(path)
    if len(picture.getbands()) != 1 or picture.mode == "F":
        raise ValueError(f"mode {picture.mode}, expected one channel with the class of each pixel")
    return np.asarray(picture).astype(np.int64 if picture.mode.startswith("I") else np.uint8, copy=False)
