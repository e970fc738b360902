"""Attention in the EVA-01 segmentation code, patched, and its training."""

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.eva01 import attend
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.functional import TokenMap
from tests.support.contract import SETTINGS
from tests.support.models import photo
from tests.support.models_eva01 import ADAPTERS, BASELINES, build, image_of, outputs_one_by_one
from tests.support.training import assert_same, gradients


@pytest.fixture(params=BASELINES)
def baseline(request):
    return request.param


def block_outputs_of_vit(model, image):
    x, *grid = model.patch_embed(image)
    x = x + model._get_pos_embed(model.pos_embed[:, 1:], *grid)
    return [x := block(x, *grid) for block in model.blocks]


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*BASELINES, "ViTBaseline"])
def test_proportional_attention_is_attention_to_the_copies(name, training):
    """A merged token of size s counts as s equal tokens, if no bias tells these apart."""
    model, image = build(name), photo()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias_table"):
            parameter.zero_()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False).train(training)
    outputs = block_outputs_of_vit if name == "ViTBaseline" else outputs_one_by_one
    before, expected = outputs(model, image)[:2]
    sizes = [6, 5] if name == "ViTBaseline" else []
    remove_algm(model)
    torch.testing.assert_close(model.blocks[1](before, *sizes), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)


@torch.no_grad()
def test_unmerged_tokens_go_through_the_attention_itself(baseline):
    """In every layer, our attention with a map that merges nothing is the block's own attention."""
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


def gradients_of(model, image):
    return gradients(model, sum(level.square().mean() for level in model(image)))


@pytest.mark.parametrize("name", [BASELINES[0], BASELINES[1], *ADAPTERS])
def test_gradients_with_its_own_checkpointing(name):
    """`with_cp` of the baseline wraps its blocks from outside; that of the adapters is inside the blocks."""
    found = []
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp)
        apply_algm(model, **SETTINGS)
        runs: list[int] = []
        for block in model.blocks:
            block.mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        found.append(gradients_of(model, image_of(name).requires_grad_()))
        assert len(runs) == (10 if with_cp else 5)
        assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0]
    plain, recomputed = found
    assert_same(recomputed, plain)
    assert sum(bool(gradient.any()) for gradient in plain.values()) > len(list(model.parameters())) / 2


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
    tables = {n: g for n, g in gradients_of(model, photo()).items() if n.endswith("bias_table")}
    assert tables
    assert all(gradient.any() for name, gradient in tables.items() if not name.startswith("blocks.4"))
