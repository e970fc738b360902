"""Forward passes that begin in a compiled patch embedding and go on in Python."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm
from tests.support import cases_segmenter
from tests.support.models import build, photo

COUNTS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [5], "merge_to": 0.6}


@pytest.fixture
def model():
    model = apply_algm(build("ViT", dynamic_img_size=True), **COUNTS)
    model.patch_embed.compile(backend="eager")
    return model


def begun(model, image):
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))


def finished(model, x, first=0):
    for block in model.blocks[first:]:
        x = block(x)
    return x


def test_recomputation_finds_the_pass(model):
    images, expected = photo(), apply_algm(build("ViT"), **COUNTS)
    expected.forward_features(images).square().mean().backward()
    model.set_grad_checkpointing(True)
    model.forward_features(images).square().mean().backward()
    for (name, found), (_, parameter) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(found.grad, parameter.grad, msg=name)


@torch.no_grad()
def test_a_pass_is_not_taken_for_one_that_began_meanwhile(model):
    first, second = photo(batch=1), photo(batch=1, seed=1)
    expected = finished(model, begun(model, first))
    x = begun(model, first)
    for block in model.blocks[:3]:
        x = block(x)
    model.blocks[0](begun(model, second))
    assert torch.equal(finished(model, x, 3), expected)


@torch.no_grad()
def test_passes_in_turns(model):
    images = [photo(batch=1), photo(batch=1, seed=1)]
    expected = [finished(model, begun(model, image)) for image in images]
    tokens = [model.blocks[0](begun(model, image)) for image in images]
    for block in model.blocks[1:]:
        tokens = [block(x) for x in tokens]
    for found, wanted in zip(tokens, expected, strict=True):
        assert torch.equal(found, wanted)


@torch.no_grad()
def test_a_decoder_finds_the_pass():
    image = photo(batch=1)
    settings: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "merge_to": 0.6, "unmerge_at": "after_head"}
    expected = apply_algm(cases_segmenter.build("mask"), **settings)(image)
    model = apply_algm(cases_segmenter.build("mask"), **settings)
    model.encoder.patch_embed.compile(backend="eager")
    assert torch.equal(model(image), expected)
