"""The EVA-01 segmentation code, patched: BEiT baselines and what ViT-Adapter builds on them."""

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.core.layer_tokens import LayerTokens
from tests.support.contract import SETTINGS
from tests.support.counting import record_unmerges
from tests.support.models import photo
from tests.support.models_eva01 import ADAPTERS, BASELINES, backbones, build, image_of, outputs_one_by_one


@pytest.fixture(params=BASELINES)
def baseline(request):
    return request.param


def feature_maps(model, outputs):
    maps = [outputs[i][:, 1:].mT.unflatten(2, (6, 5)) for i in model.out_indices]
    return [op(x) for op, x in zip([model.fpn1, model.fpn2, model.fpn3, model.fpn4], maps, strict=False)]


@torch.no_grad()
@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [1, 2, 3, 4], [0, 3], [2]])
def test_the_baseline_unmerges_what_its_features_are_made_of(baseline, indices, monkeypatch):
    model, image = build(baseline, out_indices=indices), photo()
    apply_algm(model, **SETTINGS)
    expected = feature_maps(model, outputs_one_by_one(model, image))
    unmerged = record_unmerges(monkeypatch)
    found = model(image)
    assert len(unmerged) == len(indices)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert model.algm.tokens_per_layer[4] < model.algm.tokens_per_layer[0] < 31


@torch.no_grad()
def test_gbm_at_11_21_and_31_of_40_blocks(baseline):
    model, image = build(baseline, depth=40, out_indices=[39]), photo()
    apply_algm(model, clap_layer=None, gbm_layers=[11, 21, 31])
    assert model(image)[0].isfinite().all()
    tokens = [31, *model.algm.tokens_per_layer]
    assert [layer for layer in range(1, 41) if tokens[layer] < tokens[layer - 1]] == [11, 21, 31]
    (expected,) = feature_maps(model, outputs_one_by_one(model, image))
    torch.testing.assert_close(model(image)[0], expected)


@torch.no_grad()
def test_vit_baseline_unmerges_its_four_levels():
    model = build("ViTBaseline", depth=8)
    apply_algm(model, **SETTINGS)
    x, *grid = model.patch_embed(photo())
    x = x + model._get_pos_embed(model.pos_embed[:, 1:], *grid)
    outputs = [x := block(x, *grid) for block in model.blocks]
    features, *_ = model.forward_features(photo())
    for found, i in zip(features, (1, 3, 5, 7), strict=True):
        torch.testing.assert_close(found, outputs[i])
    assert "full grid given back after layer 2, 4, 6, 8" in repr(model.algm)


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_interactions_of_an_adapter_see_full_grids(name):
    """An adapter reads and writes between the blocks; inside them tokens merge."""
    model, image = build(name), image_of(name)
    plain = model(image)
    shapes = set()
    for interaction in model.interactions:
        interaction.extractor.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.add(kwargs["feat"].shape), with_kwargs=True
        )
    apply_algm(model, **SETTINGS)
    found = model(image)
    assert shapes == {(2, 24, 64)}
    assert [x.shape for x in found] == [x.shape for x in plain]
    assert not any(torch.equal(x, y) for x, y in zip(found, plain, strict=True))
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 24
    assert "the full grid was read after layer 1, 2, 4" in repr(model.algm)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    for one, other in zip(model(image), plain, strict=True):
        assert torch.equal(one, other)


def attend_merged(attention, x, tokens):
    """Compute the attention of merged tokens as the original does: bias by bias, softmax, sum."""
    heads = attention.num_heads
    q, k, v = nn.functional.linear(
        x, attention.qkv.weight, torch.cat([attention.q_bias, 0 * attention.v_bias, attention.v_bias])
    ).chunk(3, -1)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    first = tokens.token_map.first
    index = attention.relative_position_index[first[:, :, None], first[:, None, :]]
    bias = attention.relative_position_bias_table[index].movedim(-1, 1)
    weights = (q * attention.scale @ k.mT + bias).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_what_an_adapter_injects_is_averaged_over_each_group():
    """The next block gets the mean of a merged token and what was written into its copies; the rest is restored."""
    model, image = build("BEiTAdapter"), image_of("BEiTAdapter")
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, proportional_attention=False)
    x, *grid = model.patch_embed(image)
    x = model.blocks[0](torch.cat([model.cls_token.expand(2, -1, -1), x], 1), *grid)
    x = x + torch.randn_like(x)
    found = model.blocks[1](x, *grid)
    token_map = model.algm.token_map
    assert token_map.sizes.max() == 4
    tokens = LayerTokens(token_map, None, 1)
    remove_algm(model)
    block = model.blocks[1]
    block.attn.forward = lambda y, rel_pos_bias: attend_merged(block.attn, y, tokens)
    means = token_map.merge(x)
    expected = token_map.unmerge(block(means, *grid)) + x - token_map.unmerge(means)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_windows_are_refused():
    code = backbones()
    shape = {"img_size": 96, "embed_dim": 64, "num_heads": 4, "depth": 4, "window_size": 4}
    for windowed in (True, [True, True, True, False]):
        with pytest.raises(ValueError, match=r"base\.beit_win\.Block, its attention runs in windows"):
            apply_algm(code.beit_win_adapter.BEiTWIN(**shape, window_attn=windowed))
    model = code.ViTBaseline(pretrain_size=96, **shape, window_attn=[False, True, False, True])
    with pytest.raises(ValueError, match=r"model\.blocks\[1\] cannot be .*vit\.Block, its attention runs in windows"):
        apply_algm(model)
    assert type(model.blocks[0]) is code.base.vit.Block


class Unknown(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, rel_pos_bias=None):
        return self.attention(x)


def test_an_attention_of_ones_own_is_refused(baseline):
    model = build(baseline)
    model.blocks[1].attn = Unknown(model.blocks[1].attn)
    with pytest.raises(ValueError, match=r"model\.blocks\[1\] cannot be patched: .* of its attention, Unknown"):
        apply_algm(model)
    assert not hasattr(model, "algm")
