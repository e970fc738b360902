"""Every image of a batch merges by its own content, as if it were alone."""

import pytest
import torch
from torch import nn

from tests.support.batches import CLOSE, MAIN_ATTENTION_KINDS, assert_as_alone, patched, prepare, unlike
from tests.support.cases import CASES
from tests.support.models import build, photo

WITH_MASKS = (
    "timm ViT",
    "timm ParallelThingsBlock",
    "timm differential attention",
    "timm EVA-02",
    "timm RoPE, mixed",
    "timm NaFlex, RoPE",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "transformers ViT, eager",
    "open_clip",
    "open_clip, custom blocks",
)
WITH_KEYS = (
    "timm ViT",
    "timm Perception Encoder",
    "transformers DINOv3",
    "transformers ViT, eager",
    "Segmenter mask transformer",
    "hub DINOv2, 4 registers",
)


def test_every_image_as_if_it_were_alone(every_model):
    model, images, final_tokens = every_model.model, every_model.images, every_model.final_tokens
    patched(model, final_tokens, images)
    assert len(set(assert_as_alone(model.algm, final_tokens, images))) > 2
    expected, order = final_tokens(images), torch.tensor([3, 0, 2, 1])
    others = images[order]
    others[0] = 3 * torch.randn_like(others[0])
    torch.testing.assert_close(final_tokens(others)[1:], expected[order][1:], **CLOSE)


@pytest.mark.parametrize(
    "settings",
    [
        {"gbm_layers": [2, 3, 5], "gbm_tau": "tau"},
        {"gbm_layers": [2, 3, 5], "gbm_tau": [0.9, 0.8, 0.7], "proportional_attention": False},
        {"clap_layer": 2, "gbm_layers": [2], "gbm_tau": 0.6, "tau": "auto"},
        {"clap_layer": None, "gbm_layers": [1, 3], "size_aware": False},
        {"gbm_layers": [], "window": (3, 2)},
        {"clap_layer": 3, "gbm_layers": [5], "place": "after_mlp"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MAIN_ATTENTION_KINDS)
@torch.no_grad()
def test_whatever_the_settings(name, settings):
    prepared = prepare(name)
    patched(prepared.model, prepared.final_tokens, prepared.images, **settings)
    assert len(set(assert_as_alone(prepared.model.algm, prepared.final_tokens, prepared.images))) > 1


@pytest.mark.parametrize("metric", ["key", "query", "value"])
@pytest.mark.parametrize("name", WITH_KEYS)
@torch.no_grad()
def test_whatever_is_compared(name, metric):
    prepared = prepare(name)
    patched(prepared.model, prepared.final_tokens, prepared.images, compare=metric)
    assert len(set(assert_as_alone(prepared.model.algm, prepared.final_tokens, prepared.images))) > 1


@pytest.mark.parametrize("name", WITH_MASKS)
@torch.no_grad()
def test_with_a_mask_for_all_images(name):
    prepared = prepare(name)
    inputs = CASES[name].position_inputs(prepared.final_tokens(prepared.images[:1]).shape[1])
    patched(prepared.model, prepared.final_tokens, prepared.images)

    def masked(images):
        return prepared.final_tokens(images, **inputs)

    assert len(set(assert_as_alone(prepared.model.algm, masked, prepared.images))) > 1
    plain = prepared.final_tokens(prepared.images)
    assert not torch.allclose(masked(prepared.images), plain, atol=1e-3)


@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize(
    "name", ["timm ViT", "timm EVA-02", "transformers ViT", "open_clip", "open_clip, custom blocks"]
)
@torch.no_grad()
def test_with_a_mask_for_each_image(name, kind):
    prepared = prepare(name)
    (argument,) = CASES[name].position_inputs(31)
    heads = 4
    masks = torch.randn(len(prepared.images), heads, 31, 31)
    if kind == "bool":
        masks = (masks < 1) | torch.eye(31, dtype=torch.bool)
        masks = ~masks if "clip" in name else masks  # there, True is what is left out
    given = {image.data_ptr(): mask for image, mask in zip(prepared.images, masks, strict=True)}

    def final_tokens(images):
        mask = torch.stack([given[image.data_ptr()] for image in images])
        return prepared.final_tokens(images, **{argument: mask.flatten(0, 1) if "clip" in name else mask})

    patched(prepared.model, prepared.final_tokens, prepared.images)
    assert len(set(assert_as_alone(prepared.model.algm, final_tokens, prepared.images))) > 1


def test_images_that_are_alike_stay_an_ordinary_batch(prepared):
    model, final_tokens, seen = prepared.model, prepared.final_tokens, []
    patched(model, final_tokens, prepared.images)
    alone = final_tokens(prepared.images[3:4])
    copies = prepared.images[3:4].expand(4, -1, -1, -1)
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2]))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    together = final_tokens(copies)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(together, alone.expand_as(together), **CLOSE)
    assert model.algm.token_map.packing is None
    assert (model.algm.token_map.sizes > 0).all()
    assert {shape[0] for shape in seen} == {4}


@torch.no_grad()
def test_an_image_that_is_not_finite_spoils_no_other():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images, gbm_layers=[2, 4])
    expected = model.forward_features(images)
    for value in (float("nan"), float("inf")):
        spoilt = images.clone()
        spoilt[1, 0, 3, 3] = value
        found = model.forward_features(spoilt)
        others = [0, 2, 3]
        torch.testing.assert_close(found[others], expected[others], **CLOSE)
        assert not found[1].isfinite().any()


@torch.no_grad()
def test_constant_images():
    model = build("ViT")
    images = torch.cat([unlike(photo())[:2], torch.zeros(1, 3, 96, 80), torch.ones(1, 3, 96, 80)])
    patched(model, model.forward_features, images)
    assert len(set(assert_as_alone(model.algm, model.forward_features, images))) > 1
