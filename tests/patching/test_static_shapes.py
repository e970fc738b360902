"""Fixed counts with other settings, without values, in training and in half precision."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from algm_patch import apply_algm
from tests.support import cases_segmenter
from tests.support.batches import CLOSE, MAIN_ATTENTION_KINDS, assert_as_alone, prepare, unlike
from tests.support.fixed_counts import FIXED_COUNTS, nearest_count, patches_left
from tests.support.models import build, photo
from tests.support.training import assert_same, checkpointed, gradients, without_chance


@pytest.mark.parametrize("settings", [{"compare": "key"}, {"place": "after_mlp"}], ids=str)
@torch.no_grad()
def test_with_other_settings(settings):
    model = apply_algm(build("ViT"), **FIXED_COUNTS, **settings)
    assert_as_alone(model.algm, model.forward_features, unlike(photo()))
    assert patches_left(model.algm) == [18, 18, 11, 11, 11]
    model.algm.reduce = "pick"
    model(unlike(photo()))
    assert patches_left(model.algm) == [18, 18, 11, 11, 11]


@torch.no_grad()
def test_a_decoder_on_so_many_tokens():
    model, images = cases_segmenter.build("mask"), unlike(photo())
    apply_algm(model, **FIXED_COUNTS, unmerge_at="after_head")
    assert_as_alone(model.algm, model, images)
    assert patches_left(model.algm) == [18, 18, 11, 11, 11]


@pytest.mark.parametrize("name", MAIN_ATTENTION_KINDS)
@torch.no_grad()
def test_shapes_depend_on_no_value(name):
    """CUDA graphs and export need this. Tensors without values show it."""
    prepared = prepare(name)
    model, images, final_tokens = prepared.model, prepared.images, prepared.final_tokens
    apply_algm(model, **FIXED_COUNTS)
    expected = final_tokens(images)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = final_tokens(mode.from_tensor(images))
    assert found.shape == expected.shape
    assert patches_left(model.algm)[-1] < expected.shape[1] / 2


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["timm ViT", "timm EVA-02", "timm BEiT", "transformers DINOv3", "open_clip"])
def test_with_deterministic_algorithms(name):
    prepared = prepare(name)
    apply_algm(without_chance(prepared.model), **FIXED_COUNTS)
    found = [gradients(prepared.model, prepared.final_tokens(prepared.images).square().mean()) for _ in range(2)]
    assert_same(*found, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(prepared, dtype):
    model, images = prepared.model.to(dtype), prepared.images.to(dtype)
    apply_algm(model, **FIXED_COUNTS)
    output = prepared.final_tokens(images)
    assert output.dtype == dtype
    assert output.isfinite().all()
    height, width = model.algm.last_pass.grid
    assert patches_left(model.algm)[0] == nearest_count(height * width, 0.6, (height // 2) * (width // 2))


def test_gradients_are_the_sum_of_those_of_each_image():
    model, images = build("EVA-02").double().train(), unlike(photo("EVA-02")).double()
    apply_algm(model, **FIXED_COUNTS)
    weights = torch.randn(4, 31, 64)
    together = gradients(model, (model.forward_features(images) * weights).sum())
    alone = [
        gradients(model, (model.forward_features(image[None]) * weight).sum())
        for image, weight in zip(images, weights, strict=True)
    ]
    total: dict[str, Any] = {key: sum(one[key] for one in alone) for key in together}
    assert_same(together, total, **CLOSE)


@pytest.mark.parametrize("how", ["blocks", "whole model"])
def test_recomputation(how):
    model, images = apply_algm(build("ViT").train(), **FIXED_COUNTS), unlike(photo())
    expected = gradients(model, model.forward_features(images).square().mean())
    found = gradients(model, checkpointed(model, how)(images).square().mean())
    assert_same(found, expected, atol=0, rtol=0)
