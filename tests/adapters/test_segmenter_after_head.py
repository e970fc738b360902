"""Segmenter's decoders on merged tokens: what they compute, what is left behind, what is refused."""

import pytest
import torch

from algm_patch import apply_algm, calibrate, remove_algm
from tests.support.cases_segmenter import AFTER_HEAD, KINDS, build, build_kind
from tests.support.contract import SETTINGS, trace
from tests.support.models import build as build_timm
from tests.support.models import photo


@pytest.fixture(params=KINDS)
def model(request):
    return build_kind(request.param)


@torch.no_grad()
def test_after_the_head_the_decoder_runs_on_merged_tokens(model):
    image, lengths = photo(), []
    apply_algm(model, **SETTINGS, batch="min")
    features = model.encoder(image, return_features=True)
    before = model(image)
    token_map, prefix = model.algm.token_map, features.shape[1] - 30
    model = remove_algm(model)
    merged = token_map.take(features)[:, prefix:]

    def full_grid(_, inputs, output):
        return token_map.without_prefix(prefix).unmerge(output)

    name = "head" if "Linear" in type(model.decoder).__name__ else "mask_norm"
    with model.decoder.get_submodule(name).register_forward_hook(full_grid):
        expected = torch.nn.functional.interpolate(model.decoder(merged, (96, 80)), (96, 80), mode="bilinear")

    apply_algm(model, **AFTER_HEAD, batch="min")
    model.decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    found = model(image)
    torch.testing.assert_close(found, expected)
    assert lengths == [merged.shape[1]]
    assert merged.shape[1] + prefix == model.algm.tokens_per_layer[-1] < 31
    assert torch.allclose(found, before, atol=1e-5) == (name == "head")  # a linear decoder minds no neighbours
    assert "proportional attention on, unmerged after the head" in repr(model.algm)
    assert "full grid given back" not in repr(model.algm)


@torch.no_grad()
def test_after_the_head_merging_nothing_is_the_original(model):
    expected = model(photo())
    apply_algm(model, gbm_layers=[], tau=1.05, unmerge_at="after_head")
    assert torch.equal(model(photo()), expected)
    model.algm.tau, model.algm.gbm_layers, model.algm.gbm_tau = 1.0, [3], 1.0
    assert torch.equal(model(photo()), expected)


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_after_the_head_nothing_is_left_behind(model, whole):
    before, expected = trace(model), model(photo())
    apply_algm(model, **SETTINGS)
    plain = model(photo())
    apply_algm(model, **AFTER_HEAD)
    assert [name for name, _ in model.named_parameters()] == list(model.state_dict())
    apply_algm(model if whole else model.encoder, **SETTINGS)
    assert torch.equal(model(photo()), plain)
    apply_algm(model, **AFTER_HEAD)
    remove_algm(model if whole else model.encoder)
    assert trace(model) == before
    assert torch.equal(model(photo()), expected)


@torch.no_grad()
def test_after_the_head_a_hook_on_the_last_block_sees_merged_tokens():
    model, image, lengths = apply_algm(build("mask"), **AFTER_HEAD), photo(), []
    masks = model(image)
    model.encoder.blocks[-1].register_forward_hook(lambda _, inputs, output: lengths.append(output.shape[1]))
    assert torch.equal(model(image), masks)
    assert lengths == [model.algm.tokens_per_layer[-1]]


@torch.no_grad()
def test_after_the_head_calibrated():
    model = apply_algm(build("mask"), clap_layer=1, gbm_layers=[3], unmerge_at="after_head")
    tau = calibrate(model, photo(batch=4))
    model(photo())
    assert f"calibrated: {tau:.4f}, unmerged" not in repr(model.algm)
    assert f"calibrated: {tau:.4f}" in repr(model.algm)
    assert "unmerged after the head" in repr(model.algm)


@pytest.mark.parametrize("model", ["whole", "timm"])
def test_after_the_head_without_a_known_decoder(model):
    model = build_timm("ViT") if model == "timm" else build("mask").encoder
    before = trace(model)
    with pytest.raises(ValueError, match=r"unmerge_at='after_head': in VisionTransformer .* model\.algm\.unmerge"):
        apply_algm(model, **AFTER_HEAD)
    assert trace(model) == before


def test_after_the_head_what_does_not_go_together():
    model = build("mask")
    apply_algm(model, **AFTER_HEAD)
    with pytest.raises(ValueError, match=r"Call apply_algm\(model, unmerge_at='before_head'\) again"):
        model.algm.unmerge_at = "before_head"
