"""Features that timm's ViTs give out, patched: on the full grid, and no others are unmerged."""

from itertools import product

import pytest
import torch
from timm.models._features import feature_take_indices

from algm_patch import apply_algm, remove_algm
from tests.support import models
from tests.support.contract import SETTINGS
from tests.support.counting import record_unmerges
from tests.support.models import FAMILIES, block_outputs, build, photo

FLAGS = ["norm", "stop_early", "return_prefix_tokens"]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@torch.no_grad()
def test_blocks_run_by_a_loop_of_ones_own_give_the_full_grid(family):
    model, image = build(family), photo(family)
    expected = block_outputs(model, image)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    assert [x.shape for x in outputs] == [x.shape for x in expected]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < expected[0].shape[1]
    torch.testing.assert_close(model.norm(outputs[-1]), model.forward_features(image))
    assert "every block gave back the full grid" not in repr(model.algm)


@torch.no_grad()
@pytest.mark.parametrize("indices", [None, 1, 2, [0], [0, 2, 4], [-1, -2], [1, 1]])
def test_forward_intermediates(family, indices):
    model, image = build(family), photo(family)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    taken = sorted(set(feature_take_indices(len(model.blocks), indices)[0]))
    prefix = model.num_prefix_tokens
    flags = [dict(zip(FLAGS, values, strict=True)) for values in product([False, True], repeat=len(FLAGS))]
    for options, output_fmt in product(flags, ["NCHW", "NLC"]):
        final, intermediates = model.forward_intermediates(image, indices, output_fmt=output_fmt, **options)
        for found, i in zip(intermediates, taken, strict=True):
            full = model.norm(outputs[i]) if options["norm"] else outputs[i]
            if options["return_prefix_tokens"] and prefix:
                found, prefix_tokens = found
                torch.testing.assert_close(prefix_tokens, full[:, :prefix])
            patches = full[:, prefix:]
            if output_fmt == "NCHW":
                patches = patches.mT.unflatten(2, models.GRID)
            torch.testing.assert_close(found, patches)
        last = max(taken) if options["stop_early"] else -1
        torch.testing.assert_close(final, model.norm(outputs[last]))


@torch.no_grad()
def test_get_intermediate_layers_and_the_head(family):
    model, image = build(family), photo(family)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    layers = model.get_intermediate_layers(image, n=[1, 3], reshape=True, norm=True)
    for found, i in zip(layers, (1, 3), strict=True):
        patches = model.norm(outputs[i])[:, model.num_prefix_tokens :]
        torch.testing.assert_close(found, patches.mT.unflatten(2, models.GRID))
    torch.testing.assert_close(model(image), model.forward_head(model.norm(outputs[-1])))


@torch.no_grad()
def test_forward_intermediates_as_a_dictionary():
    model, image = build("DINOv2, 4 registers"), photo("DINOv2, 4 registers")
    apply_algm(model, **SETTINGS)
    options = {"indices": [1, 4], "return_prefix_tokens": True}
    final, pairs = model.forward_intermediates(image, **options)
    found = model.forward_intermediates(image, **options, output_dict=True)
    assert torch.equal(found["image_features"], final)
    for i, (patches, prefix) in enumerate(pairs):
        assert torch.equal(found["image_intermediates"][i], patches)
        assert torch.equal(found["image_intermediates_prefix"][i], prefix)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"feature_cls": "hook", "out_indices": (0, 2)}])
def test_features_only(options):
    model = build("ViT", features_only=True, **options).eval()
    plain = model(photo())
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.5)
    features = model(photo())
    assert [x.shape for x in features] == [x.shape for x in plain]
    assert model.algm.tokens_per_layer[-1] < 31
    remove_algm(model)
    for found, expected in zip(model(photo()), plain, strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_only_what_is_read_is_unmerged(monkeypatch):
    model = apply_algm(build("ViT"), **SETTINGS)
    unmerged = record_unmerges(monkeypatch)
    model.forward_features(photo())
    assert len(unmerged) == 1
    unmerged.clear()
    model.forward_intermediates(photo(), indices=[1, 2])
    assert len(unmerged) == 3
    for options in ({"stop_early": True}, {"intermediates_only": True}):
        unmerged.clear()
        model.forward_intermediates(photo(), indices=[1], **options)
        assert len(unmerged) == 1
