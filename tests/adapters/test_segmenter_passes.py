"""Segmenter's decoders on merged tokens find the pass that merged them: copies, threads, images in turns, compiled."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.cases_segmenter import AFTER_HEAD, build
from tests.support.contract import SETTINGS, trace
from tests.support.models import photo


@torch.no_grad()
@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_after_the_head_a_copy_goes_its_own_way(how):
    model, image = apply_algm(build("mask"), **AFTER_HEAD), photo()
    before, masks = trace(remove_algm(how(model))), model(image)
    other = how(model)
    assert torch.equal(other(image), masks)
    other.algm.tau = 0.9
    assert not torch.equal(other(image), masks)
    apply_algm(other, **SETTINGS)
    assert not torch.equal(other(image), masks)
    assert trace(remove_algm(other)) == before
    assert torch.equal(model(image), masks)


@torch.no_grad()
def test_after_the_head_each_decoding_finds_its_own_encoding():
    """Two images are encoded, then decoded in the other order; both merge to the same number of tokens."""
    model, images = build("mask"), [photo(seed=1), photo(seed=2)]
    apply_algm(model, clap_layer=None, gbm_layers=[2], gbm_tau=-1.0, unmerge_at="after_head")
    expected = [model.decoder(model.encoder(image, return_features=True)[:, 1:], (96, 80)) for image in images]
    first, second = [model.encoder(image, return_features=True)[:, 1:] for image in images]
    assert first.shape == second.shape
    for features, masks in zip((second, first), reversed(expected), strict=True):
        assert torch.equal(model.decoder(features, (96, 80)), masks)


@torch.no_grad()
def test_after_the_head_in_two_threads():
    model = apply_algm(build("mask"), clap_layer=None, gbm_layers=[2], gbm_tau=-1.0, unmerge_at="after_head")
    images = [photo(seed=seed) for seed in range(2)]
    expected = [model(image) for image in images]

    def same(number):
        with torch.no_grad():
            return all(torch.equal(model(images[number]), expected[number]) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(same, range(2))) == [True, True]


@torch.no_grad()
def test_after_the_head_compiled():
    model, image = build("mask", depth=2), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.5, unmerge_at="after_head")
    expected = model(image)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(image), expected)


@torch.no_grad()
def test_after_the_head_tokens_that_cannot_be_traced():
    model, image = apply_algm(build("mask"), **AFTER_HEAD), photo()
    features = model.encoder(image, return_features=True)[:, 1:]
    with pytest.raises(RuntimeError, match=r"cannot trace to a forward pass of VisionTransformer\. Hand it what"):
        model.decoder(2 * features, (96, 80))
    x = model.encoder.patch_embed(image)
    x = torch.cat([model.encoder.cls_token.expand(2, -1, -1), x], 1)
    with pytest.raises(RuntimeError, match=r"run by a method that ALGM does not know.*before_head"):
        model.encoder.blocks[0](x)
