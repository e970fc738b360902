"""Official checkpoints of Segmenter predict as its own inference code does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from algm_patch import apply_algm
from benchmarks.evaluation.loading import load
from benchmarks.evaluation.weights import ModelError
from tests.support.third_party import third_party
from tests.support.tiny_segmentation import (
    CLASSES,
    MEAN,
    STD,
    noise,
)


def segmenter(decoder: dict[str, Any], folder: Path, normalization: str = "vit") -> Any:
    """Write a checkpoint with random weights as Segmenter's training does, and return its model."""
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


def test_segmenter_without_its_code(tmp_path, monkeypatch):
    (tmp_path / "variant.yml").write_text("net_kwargs: {}")
    for name in [name for name in sys.modules if name == "segm" or name.startswith("segm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segm", None)
    with pytest.raises(ModelError, match="PYTHONPATH"):
        load(str(tmp_path))
