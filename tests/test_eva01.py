"""The EVA-01 segmentation code on patched models: BEiT baselines and what ViT-Adapter builds on them."""

import pytest
import torch
from models import photo
from models_eva01 import MODELS, backbones, build, grid_of, outputs_one_by_one
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.eva01 import attend
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.functional import TokenMap

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
BASELINES = [model for model in MODELS if model.startswith("BEiTBaseline")]
ADAPTERS = [model for model in MODELS if model.endswith("Adapter")]


@pytest.fixture(params=BASELINES)
def baseline(request):
    return request.param


def image_of(model, **options):
    return photo(grid=grid_of(model), **options)


def feature_maps(model, outputs):
    maps = [outputs[i][:, 1:].mT.unflatten(2, (6, 5)) for i in model.out_indices]
    return [op(x) for op, x in zip([model.fpn1, model.fpn2, model.fpn3, model.fpn4], maps, strict=False)]


@torch.no_grad()
@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [1, 2, 3, 4], [0, 3], [2]])
def test_the_baseline_unmerges_what_its_features_are_made_of(baseline, indices, monkeypatch):
    model, image = build(baseline, out_indices=indices), photo()
    apply_algm(model, **SETTINGS)
    expected = feature_maps(model, outputs_one_by_one(model, image))
    unmerged = []
    monkeypatch.setattr(TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: unmerged.append(1) or real(self, x))
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
    """They read and write between the blocks, whatever is merged inside them."""
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
    assert "every block gave back the full grid" in repr(model.algm)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    for one, other in zip(model(image), plain, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_what_an_adapter_injects_is_averaged_over_each_group():
    """The next block gets the mean of a merged token and what was written into its copies."""
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
    torch.testing.assert_close(found, token_map.unmerge(block(token_map.merge(x), *grid)), atol=1e-5, rtol=1e-5)


def attend_merged(attention, x, tokens):
    """Attention of merged tokens in the words of the original: bias by bias, softmax, sum."""
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
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*BASELINES, "ViTBaseline"])
def test_proportional_attention_is_attention_to_the_copies(name, training):
    """Where no bias tells them apart: a merged token of size s counts as s equal tokens."""
    model, image = build(name), photo()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias_table"):
            parameter.zero_()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5).train(training)
    run = block_outputs_of_vit if name == "ViTBaseline" else outputs_one_by_one
    before, expected = run(model, image)[:2]
    sizes = [6, 5] if name == "ViTBaseline" else []
    remove_algm(model)
    torch.testing.assert_close(model.blocks[1](before, *sizes), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)


def block_outputs_of_vit(model, image):
    x, *grid = model.patch_embed(image)
    x = x + model._get_pos_embed(model.pos_embed[:, 1:], *grid)
    return [x := block(x, *grid) for block in model.blocks]


@torch.no_grad()
def test_unmerged_tokens_go_through_the_attention_itself(baseline):
    """In whatever layer: with a map that merges nothing, what we compute is what it computes."""
    model, image = build(baseline), photo()
    x = outputs_one_by_one(model, image)[1]
    bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
    attention = model.blocks[2].attn
    expected = attention(x, rel_pos_bias=bias)
    found = attend(attention, x, LayerTokens(TokenMap.identity(2, 31), None, 1), bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(attend(attention, x, LayerTokens(None, None, 1), bias, rel_pos_bias=bias), expected)


@torch.no_grad()
def test_attention_dropout_in_merged_layers():
    model, image = build(BASELINES[0], attn_drop_rate=0.5), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    assert torch.equal(model(image)[-1], model(image)[-1])
    model.blocks[1].train()
    assert not torch.equal(model(image)[-1], model(image)[-1])


def gradients(model, image):
    model.zero_grad()
    output = model(image)
    sum(level.square().mean() for level in output).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", [BASELINES[0], BASELINES[1], *ADAPTERS])
def test_gradients_with_its_own_checkpointing(name):
    """`with_cp` of the baseline wraps its blocks from outside; that of the adapters is inside the blocks."""
    found = []
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp)
        apply_algm(model, **SETTINGS)
        runs = []
        for block in model.blocks:
            block.mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        found.append(gradients(model, image_of(name).requires_grad_()))
        assert len(runs) == (10 if with_cp else 5)
        assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0]
    plain, recomputed = found
    for parameter, expected in plain.items():
        if expected is None:
            assert recomputed[parameter] is None
        else:
            torch.testing.assert_close(recomputed[parameter], expected)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in plain.values()) > len(plain) / 2


def test_blocks_without_the_setting_do_not_recompute():
    """ViT-Adapter's first blocks have no `with_cp`."""
    model, image = apply_algm(build("ViTBaseline"), **SETTINGS), photo()
    expected = model(image)
    for block in model.blocks:
        del block.with_cp
    for found, level in zip(model(image), expected, strict=True):
        assert torch.equal(found, level)


def test_the_bias_tables_learn(baseline):
    model = apply_algm(build(baseline), **SETTINGS)
    tables = {n: g for n, g in gradients(model, photo()).items() if n.endswith("bias_table")}
    assert tables
    assert all(gradient.any() for name, gradient in tables.items() if not name.startswith("blocks.4"))


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
