"""Attention in Segmenter's blocks, patched: dropout, maps, hooks, and attention of another kind."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.attention import attend
from tests.support.cases_segmenter import build
from tests.support.contract import SETTINGS
from tests.support.models import photo


@torch.no_grad()
def test_fused_attention_is_the_blocks_own():
    attention, x = build("mask").encoder.blocks[2].attn, torch.randn(2, 31, 64)
    torch.testing.assert_close(attend(attention, x, None, 4), attention(x)[0], atol=1e-5, rtol=1e-5)
    attention.scale = 1.0
    torch.testing.assert_close(attend(attention, x, None, 4), attention(x)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("drop", ["attn_drop", "proj_drop"])
def test_fused_attention_drops_what_the_block_drops(drop):
    attention, x = build("mask").encoder.blocks[2].attn, torch.randn(2, 31, 64)
    getattr(attention, drop).p = 1.0
    kept = attend(attention, x, None, 4)
    getattr(attention, drop).train()  # alone, as for Monte Carlo dropout
    dropped = attend(attention, x, None, 4)
    assert not torch.allclose(dropped, kept)
    torch.testing.assert_close(dropped, attention(x)[0])


@torch.no_grad()
def test_proportional_attention_is_attention_to_the_copies():
    model, image = build("mask"), photo(batch=1)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False)
    outputs = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    model(image)
    assert model.algm.tokens_per_layer[-1] < 31
    remove_algm(model)
    torch.testing.assert_close(model.encoder.blocks[2](outputs[1]), outputs[2], atol=1e-5, rtol=1e-5)


def test_attention_maps_of_merged_layers_are_refused():
    model, image = build("mask"), photo()
    expected = model.encoder.get_attention_map(image, 1)
    apply_algm(model, clap_layer=3, gbm_layers=[], tau=0.5)
    torch.testing.assert_close(model.encoder.get_attention_map(image, 1), expected)
    for layer in (2, 4):
        with pytest.raises(ValueError, match=r"return_attention=True: .* Call remove_algm"):
            model.get_attention_map_enc(image, layer)
    assert model.get_attention_map_dec(image, 1).shape == (2, 4, 37, 37)
    assert model(image).shape == (2, 7, 96, 80)


@torch.no_grad()
def test_hooks_on_attention_are_not_skipped_in_silence():
    model, image = apply_algm(build("mask"), **SETTINGS, batch="min"), photo()
    seen = []
    hook = model.encoder.blocks[3].attn.qkv.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    model(image)
    assert seen == [(2, model.algm.tokens_per_layer[2], 192)]
    hook.remove()
    model.encoder.blocks[3].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"this Attention has hooks, .* on its qkv or proj, or call remove_algm"):
        model(image)


@torch.no_grad()
def test_attention_of_another_kind_runs_as_it_is():
    model, lengths = build("mask"), []
    attention: Any = type(model.encoder.blocks[0].attn)

    class Listening(attention):
        def forward(self, x, mask=None):
            lengths.append(x.shape[1])
            return super().forward(x, mask)

    for block in model.encoder.blocks:
        block.attn.__class__ = Listening
    with pytest.raises(ValueError, match=r"proportional_attention=True .* block 1 of VisionTransformer \(Block\)"):
        apply_algm(model)
    apply_algm(model, **SETTINGS, proportional_attention=False, batch="min")
    model(photo())
    assert lengths == [31, *model.algm.tokens_per_layer[:-1]]


def test_stochastic_depth_is_the_blocks_own():
    model, image = build("mask", drop_path_rate=0.5).train(), photo(batch=4)
    torch.manual_seed(1)
    expected = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=1.0, gbm_tau=1.0, unmerge_at="after_head")
    torch.manual_seed(1)
    assert torch.equal(model(image), expected)
    assert set(model.algm.tokens_per_layer) == {31}
