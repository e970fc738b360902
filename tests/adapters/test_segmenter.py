"""Segmenter, patched: its decoders see the full grid, and it trains."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm, remove_algm
from algm_patch.patching.find_vit import find_vit
from tests.support.cases_segmenter import AFTER_HEAD, KINDS, build_kind
from tests.support.contract import SETTINGS, trace
from tests.support.counting import record_unmerges
from tests.support.models import photo
from tests.support.training import assert_same, gradients


@pytest.fixture(params=KINDS)
def model(request):
    return build_kind(request.param)


def test_the_decoder_has_the_same_blocks_and_is_left_alone(model):
    trunk, vit = find_vit(model)
    assert vit.blocks == list(model.encoder.blocks)
    assert trunk is model.encoder
    before = trace(model.decoder)
    apply_algm(model, **SETTINGS)
    assert trace(model.decoder) == before


@torch.no_grad()
def test_by_default_the_decoder_sees_the_full_grid(model, monkeypatch):
    image, unmerged = photo(), record_unmerges(monkeypatch)
    apply_algm(model, **SETTINGS)
    masks = model(image)
    assert len(unmerged) == 1
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31
    features = model.encoder(image, return_features=True)
    prefix = features.shape[1] - 30
    remove_algm(model)
    expected = model.decoder(features[:, prefix:], (96, 80))
    torch.testing.assert_close(masks, torch.nn.functional.interpolate(expected, (96, 80), mode="bilinear"))


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, AFTER_HEAD])
def test_images_of_any_size_are_padded_as_ever(model, settings):
    plain = [model(photo(grid=grid)[..., 3:, 5:]).shape for grid in [(6, 5), (4, 7), (2, 2)]]
    apply_algm(model, **settings)
    assert [model(photo(grid=grid)[..., 3:, 5:]).shape for grid in [(6, 5), (4, 7), (2, 2)]] == plain


@pytest.mark.parametrize("settings", [SETTINGS, AFTER_HEAD])
def test_training_and_recomputation(model, settings):
    """Two passes wait for one backward pass, in which the decoder, the encoder or both run again."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1
    apply_algm(model.train(), **settings)
    images = [photo(seed=1), photo(seed=2)]

    def encode(image):
        return model.encoder(image, return_features=True)

    def decode(x):
        return model.decoder(x[:, 1 + model.encoder.distilled :], (96, 80))

    def again(function, reentrant=False):
        return lambda x: checkpoint(function, x, use_reentrant=reentrant)

    def gradients_of(encode, decode):
        torch.manual_seed(0)
        masks = [decode(encode(image)) for image in images]
        with torch.no_grad():
            model(photo(seed=3))
        return gradients(model, masks[0].square().mean() + masks[1].pow(3).mean())

    expected = gradients_of(encode, decode)
    assert model.algm.tokens_per_layer[-1] < 31
    assert all(name in expected for name, _ in model.encoder.blocks.named_parameters("encoder.blocks"))
    assert_same(gradients_of(again(encode), decode), expected, atol=0, rtol=0)
    assert_same(gradients_of(encode, again(decode)), expected, atol=0, rtol=0)
    assert_same(gradients_of(encode, again(decode, reentrant=True)), expected, atol=0, rtol=0)
    assert_same(gradients_of(again(encode), again(decode)), expected, atol=0, rtol=0)
