"""Data sets on disk: layouts as published, folders, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Cityscapes

from algm_patch.viz.paint import distinct_colours
from benchmarks.evaluation import layouts
from benchmarks.evaluation.dataset import DataError
from benchmarks.evaluation.layouts import open_dataset
from tests.support.tiny_segmentation import (
    CLASSES,
    HIGH,
    IGNORED,
    WIDE,
    labels,
    make_folder,
    noise,
    opened,
    save,
)

# Paths of files and meanings of values, from the data sets' own documentation.
LAYOUTS = {
    "ade20k": (
        "ADEChallengeData2016/images/validation/ADE_val_0000000{i}.jpg",
        "ADEChallengeData2016/annotations/validation/ADE_val_0000000{i}.png",
        150,
        {0: 255, 1: 0, 2: 1, 150: 149},
        {0: "wall", 1: "building", 149: "flag"},
    ),
    "cityscapes": (
        "leftImg8bit/val/munster/munster_00000{i}_000019_leftImg8bit.png",
        "gtFine/val/munster/munster_00000{i}_000019_gtFine_labelIds.png",
        19,
        {0: 255, 7: 0, 8: 1, 26: 13, 29: 255, 33: 18},
        {0: "road", 13: "car", 18: "bicycle"},
    ),
    "cityscapes, train ids": (
        "leftImg8bit/val/munster/munster_00000{i}_000019_leftImg8bit.png",
        "gtFine/val/munster/munster_00000{i}_000019_gtFine_labelTrainIds.png",
        19,
        {0: 0, 7: 7, 18: 18, 255: 255},
        {0: "road", 13: "car", 18: "bicycle"},
    ),
    "pascal-context": (
        "VOCdevkit/VOC2010/JPEGImages/2008_00000{i}.jpg",
        "VOCdevkit/VOC2010/SegmentationClassContext/2008_00000{i}.png",
        60,
        {0: 0, 1: 1, 59: 59, 255: 255},
        {0: "background", 1: "aeroplane", 59: "wood"},
    ),
    "pascal-context-59": (
        "VOCdevkit/VOC2010/JPEGImages/2008_00000{i}.jpg",
        "VOCdevkit/VOC2010/SegmentationClassContext/2008_00000{i}.png",
        59,
        {0: 255, 1: 0, 59: 58},
        {0: "aeroplane", 58: "wood"},
    ),
    "coco-stuff": (
        "images/val2017/00000000000{i}.jpg",
        "annotations/val2017/00000000000{i}_labelTrainIds.png",
        171,
        {0: 0, 91: 91, 170: 170, 255: 255},
        {0: "person", 170: "wood"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_as_published(name, tmp_path):
    image_path, label_path, classes, meaning, names = LAYOUTS[name]
    layout = name.split(",")[0]
    values = list(meaning)
    for i in range(3):
        save(noise(i), tmp_path / image_path.format(i=i))
        save(labels(i, values), tmp_path / label_path.format(i=i))
    if layout.startswith("pascal"):
        listed = tmp_path / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt"
        listed.parent.mkdir(parents=True)
        listed.write_text("2008_000000\n2008_000002\n")
    dataset = open_dataset(layout, tmp_path, progress=False)

    assert len(dataset) == (2 if layout.startswith("pascal") else 3)
    assert len(dataset.classes) == classes
    assert {i: dataset.classes[i] for i in names} == names
    assert dataset.palette.shape == (classes, 3)
    sample = dataset[-1]
    assert str(sample.path).endswith(image_path.format(i=2))
    stored = np.array(Image.open(tmp_path / label_path.format(i=2)))
    for value, label in meaning.items():
        assert (sample.label[torch.from_numpy(stored == value)] == label).all()
    assert np.array_equal(sample.image.permute(1, 2, 0), np.asarray(Image.open(sample.path)))


def test_names_and_colours():
    """Each data set has its known number of classes; those of Cityscapes are torchvision's."""
    named = json.loads(layouts.CLASSES.read_text())
    assert {name: len(classes) for name, classes in named.items()} == {
        "ade20k": 150,
        "cityscapes": 19,
        "pascal-context": 60,
        "coco-stuff": 171,
    }
    trained = {c.train_id: c for c in Cityscapes.classes if not c.ignore_in_eval}
    ours = {name: layouts.rgb(colour) for name, colour in named["cityscapes"].items()}
    assert ours == {trained[i].name: trained[i].color for i in range(19)}


def test_a_folder(folder):
    dataset = opened(folder)
    assert dataset.classes == tuple(f"class {i}" for i in range(CLASSES))
    assert len({tuple(colour) for colour in dataset.palette.tolist()}) == CLASSES
    assert dataset.ignore_index == IGNORED
    assert [sample.path.stem for sample in dataset] == ["0", "1", "2"]
    assert [sample.path.stem for sample in dataset[::2]] == ["0", "2"]
    assert dataset[1].label.unique().tolist() == [*range(CLASSES), IGNORED]
    assert (opened(folder).palette == dataset.palette).all()


def test_a_folder_of_splits(tmp_path):
    make_folder(tmp_path / "train", 2)
    make_folder(tmp_path / "val", 1)
    assert len(opened(tmp_path, split="train")) == 2
    assert len(opened(tmp_path)) == 1


def test_classes_by_name(folder):
    (folder / "classes.txt").write_text("sky #0000ff\ntraffic light\n\nroad\npole #404040\nshop\n")
    dataset = opened(folder)
    assert dataset.classes == ("sky", "traffic light", "road", "pole", "shop")
    assert dataset.palette[0].tolist() == [0, 0, 255]
    assert dataset.palette[3].tolist() == [64, 64, 64]


def test_generated_colours_differ():
    colours = distinct_colours(40).tolist()
    assert len(set(map(tuple, colours))) == 40
    assert colours[:7] == distinct_colours(7).tolist()


def test_a_camera_on_its_side(folder):
    """The label of a picture with EXIF orientation is that of what people see."""
    picture = noise(7, HIGH, WIDE)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "images/1.jpg", exif=exif)
    save(labels(1, [0, 4], WIDE, HIGH), folder / "labels/1.png")
    sample = opened(folder)[1]
    assert sample.image.shape[1:] == sample.label.shape == (WIDE, HIGH)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


# A change to the folder, the file that the error must name, and words that it must say.
WRONGS = {
    "no images": (lambda root: (root / "images").rename(root / "pictures"), "images", "not a folder"),
    "no labels": (lambda root: [path.unlink() for path in (root / "labels").iterdir()], "labels", "no file"),
    "image without label": (lambda root: (root / "labels/1.png").unlink(), "images/1.jpg", "no label"),
    "label without image": (lambda root: (root / "images/1.jpg").unlink(), "labels/1.png", "no image"),
    "same stem": (lambda root: save(noise(1), root / "images/1.png"), "images/1.jpg", "same stem"),
    "truncated image": (lambda root: truncate(root / "images/1.jpg"), "images/1.jpg", "truncated"),
    "truncated label": (lambda root: truncate(root / "labels/1.png"), "labels/1.png", "cannot be read"),
    "not an image": (lambda root: (root / "images/1.jpg").write_text("hello"), "images/1.jpg", "not an image"),
    "empty file": (lambda root: (root / "labels/1.png").write_text(""), "labels/1.png", "not an image"),
    "other size": (lambda root: save(labels(0, [0], 44), root / "labels/1.png"), "labels/1.png", "64x44"),
    "coloured label": (lambda root: save(noise(1), root / "labels/1.png"), "labels/1.png", "mode RGB"),
    "out of range": (lambda root: save(labels(0, [0, 4, 77]), root / "labels/1.png"), "labels/1.png", "holds 77"),
    "all ignored": (
        lambda root: (
            [save(labels(0, [IGNORED]), root / f"labels/{i}.png") for i in range(3)] + [(root / "classes.txt").unlink()]
        ),
        "labels",
        "does not count",
    ),
    "a colour that is none": (
        lambda root: (root / "classes.txt").write_text("sky #12"),
        "classes.txt",
        "neither a name",
    ),
    "no name": (lambda root: (root / "classes.txt").write_text("\n"), "classes.txt", "names no class"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_is_wrong_is_named(wrong, folder):
    (folder / "classes.txt").write_text("\n".join(f"name {i}" for i in range(CLASSES)))
    opened(folder)
    spoil, file, said = WRONGS[wrong]
    spoil(folder)
    with pytest.raises(DataError, match=said) as error:
        opened(folder)
    assert str(folder / file) in str(error.value)


def test_all_wrong_files_are_counted(tmp_path):
    folder = make_folder(tmp_path / "set", 13)
    (folder / "classes.txt").write_text("one\ntwo")
    with pytest.raises(DataError, match="13 files of 13 images") as error:
        opened(folder)
    assert "and 3 more" in str(error.value)


def test_a_label_that_changes_meanwhile(folder):
    (folder / "classes.txt").write_text("one\ntwo\nthree\nfour\nfive")
    dataset = opened(folder)
    for changed in (labels(0, [0, 77]), labels(0, [0], 44)):
        save(changed, folder / "labels/1.png")
        with pytest.raises(DataError, match=r"labels/1\.png has changed"):
            dataset[1]


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("ade", {}, "layout 'ade' is unknown"),
        ("ade20k", {"ignore": 0}, "part of its layout"),
        ("folder", {"ignore": -1}, "ignore=-1"),
    ],
)
def test_wrong_arguments(layout, options, said, folder):
    with pytest.raises(ValueError, match=said):
        open_dataset(layout, folder, progress=False, **options)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_wrong_path_is_named(layout, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        open_dataset(layout, tmp_path / "nowhere", progress=False)
    with pytest.raises(DataError, match=str(tmp_path)):
        open_dataset(layout, tmp_path, progress=False)
