"""Models that change after the patch, and forward passes that fail."""

import pytest
import timm
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from tests.support.models import build, photo


def test_blocks_alone_do_not_know_their_grid():
    model = apply_algm(build("ViT"))
    with pytest.raises(RuntimeError, match=r"block 2 .* cannot trace .* patch embedding did not run"):
        model.blocks[1](torch.randn(1, 31, 64))


def test_a_patch_embedding_replaced_after_the_patch_is_noticed():
    model = apply_algm(build("ViT"))
    model(photo())
    model.patch_embed.proj = nn.Conv2d(3, 64, 16, 16)
    with pytest.raises(RuntimeError, match="was it replaced"):
        model(photo())
    apply_algm(model)
    model(photo())


@torch.no_grad()
def test_an_error_inside_the_model_leaves_the_next_forward_pass_whole():
    model, image = apply_algm(build("ViT"), tau=0.5), photo()
    expected = model(image)
    hook = model.blocks[3].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(image)
    hook.remove()
    assert torch.equal(model(image), expected)


def prune(model):
    model.prune_intermediate_layers([1])


def replace(model):
    model.blocks[1] = timm.models.vision_transformer.Block(64, 4)


def add(model):
    model.blocks.append(timm.models.vision_transformer.Block(64, 4))


@pytest.mark.parametrize("change", [prune, replace, add])
def test_blocks_changed_after_the_patch_are_noticed(change):
    model = build("ViT")
    apply_algm(model, gbm_layers=[2], tau=0.5)
    change(model)
    with pytest.raises(RuntimeError, match=r"no longer those that apply_algm patched .* Call apply_algm again"):
        model.forward_features(photo())
    apply_algm(model, gbm_layers=[2], tau=0.5)
    model.forward_features(photo())
    assert len(model.algm.tokens_per_layer) == len(model.blocks)
    remove_algm(model)
    assert all(type(block) is timm.models.vision_transformer.Block for block in model.blocks)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@torch.no_grad()
def test_blocks_may_be_wrapped_after_the_patch():
    model, image = apply_algm(build("ViT"), tau=0.5), photo()
    expected = model(image)
    model.blocks[2] = Wrapped(model.blocks[2])
    assert torch.equal(model(image), expected)


@torch.no_grad()
def test_claps_threshold_when_its_block_did_not_run():
    model = apply_algm(build("ViT"), clap_layer=2, gbm_layers=[4], gbm_tau="tau")
    x = model._pos_embed(model.patch_embed(photo()))
    with pytest.raises(RuntimeError, match=r"block 2, where CLAP computes it, did not run.*gbm_tau"):
        model.blocks[3](x)
