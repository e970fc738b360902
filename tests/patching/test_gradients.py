"""Gradients of whole models."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.models import build, photo, read_every_block
from tests.support.training import assert_same, gradients

SETTINGS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}
NOTHING = {**SETTINGS, "tau": 1.05, "gbm_tau": 1.05}
EVERYTHING = {**SETTINGS, "tau": -1.0, "gbm_tau": -1.0}


def rebuilt_forward(model, image, plans, restore):
    """Run the unpatched model in plain autograd, with the merges of these plans as products with dense matrices.

    Args:
        restore: what each merge takes from the original tokens is added to the full grid, without a gradient.
    """
    x = model._pos_embed(model.patch_embed(image))
    back = torch.eye(x.shape[1]).expand(len(x), -1, -1)  # from merged tokens to original ones
    sizes, lost = torch.ones(x.shape[:2]), torch.zeros(())
    for layer, block in enumerate(model.blocks):
        bias = sizes.log()[:, None, None]
        x = x + block.attn(block.norm1(x), attn_mask=bias.expand(-1, 4, x.shape[1], -1))
        for plan in plans.get(layer, []):
            member = torch.nn.functional.one_hot(plan.step.labels, plan.step.sizes.shape[1]).float()
            held = back @ x
            x = (
                member * (sizes / (member.mT @ sizes[..., None])[..., 0].gather(1, plan.step.labels))[..., None]
            ).mT @ x
            back = back @ member
            lost = lost + restore * (held - back @ x).detach()
            sizes = (member.mT @ sizes[..., None])[..., 0]
        x = x + block.mlp(block.norm2(x))
    return model.norm(back @ x + lost)


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_are_those_of_a_plain_rebuild_of_the_merges(batch, restore):
    model, image = build("ViT").train(), photo(batch=batch)
    weights = torch.randn(batch, 31, 64)
    apply_algm(model, **SETTINGS, restore=restore)
    output = model.forward_features(image)
    found = gradients(model, (output * weights).sum())
    plans = {layer: list(block.plans.values()) for layer, block in model.algm.last_pass.blocks.items()}
    assert [len(plans[layer]) for layer in range(5)] == [0, 1, 1, 1, 0]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[2] < model.algm.tokens_per_layer[1] < 31
    remove_algm(model)
    expected_output = rebuilt_forward(model, image, plans, restore)
    torch.testing.assert_close(output, expected_output, atol=1e-5, rtol=1e-5)
    assert_same(found, gradients(model, (expected_output * weights).sum()), atol=1e-4, rtol=1e-4)
    assert len(found) == len([*model.blocks.named_parameters()]) + 6  # none unused: embedding (4) and norm (2) too


@pytest.mark.parametrize("every_block", [False, True])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_gradcheck_of_a_whole_model(batch, every_block):
    model, image = build("ViT").double().train(), photo(batch=3).double().requires_grad_()
    apply_algm(model, **SETTINGS, batch=batch, restore=False)  # what is restored has no gradient
    if every_block:
        read_every_block(model)
    assert torch.autograd.gradcheck(model.forward_features, image, fast_mode=True)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[1] < 31


@pytest.mark.parametrize("zero", [False, True], ids=["identical", "zero"])
@pytest.mark.parametrize("settings", [NOTHING, EVERYTHING, {**SETTINGS, "tau": "auto"}])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_merging_patches_that_are_the_same_changes_no_gradient(zero, settings, batch):
    model, image = build("ViT").train(), torch.zeros(2, 3, 96, 80)
    with torch.no_grad():
        model.pos_embed[:, 1:] = 0
        model.patch_embed.proj.bias.mul_(not zero)

    def loss():
        return model.forward_features(image).mul(torch.linspace(-1, 1, 64)).sum()

    expected = gradients(model, loss())
    apply_algm(model, **settings, batch=batch)
    found = gradients(model, loss())
    assert (model.algm.tokens_per_layer[-1] < 31) == (settings is not NOTHING)
    assert_same(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"batch": "image"}, {"tau": "auto", "merge_to": 0.6}], ids=["min", "image", "fixed"]
)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gradients_of_micro_batches_add_up(settings, recompute):
    """They add up to those of one model for each. Where images merge by themselves, that is the batch's gradient."""
    settings, images = {**SETTINGS, "gbm_layers": [3], **settings}, photo(batch=6)

    def built():
        model = apply_algm(build("ViT").train(), **settings)
        model.set_grad_checkpointing(recompute)
        return model

    def loss(model, images):
        return model.forward_features(images).square().sum()

    alone = [gradients(model, loss(model, part)) for model, part in ((built(), part) for part in images.split(2))]
    model = built()
    expected: dict[str, Any] = {name: sum(each[name] for each in alone) for name in alone[0]}
    for part in images.split(2):
        loss(model, part).backward()
    assert_same({name: model.get_parameter(name).grad for name in expected}, expected, atol=1e-3, rtol=1e-5)
    if settings.get("batch") or settings.get("merge_to"):
        assert_same(gradients(model, loss(model, images)), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("batch", ["min", "image"])
def test_random_depth_and_dropout_draw_as_ever(batch):
    drops: dict[str, Any] = {f"{part}_drop_rate": 0.2 for part in ("pos", "proj", "attn")}
    model, image = build("ViT", drop_path_rate=0.4, **drops).train(), photo(batch=3)

    def drawn():
        torch.manual_seed(0)
        return gradients(model, model(image).square().sum()), torch.rand(())

    expected, after = drawn()
    apply_algm(model, **{**SETTINGS, "tau": 1.0, "gbm_tau": 1.0}, batch=batch)  # which no two tokens reach
    found, still = drawn()
    assert model.algm.tokens_per_layer[-1] == 31
    assert_same(found, expected, atol=0, rtol=0)
    assert torch.equal(after, still)
    model.algm.tau, model.algm.gbm_tau = 0.5, "adaptive"
    merged, again = drawn()[0], drawn()[0]
    assert model.algm.tokens_per_layer[-1] < 31
    assert_same(again, merged, atol=0, rtol=0)
    assert merged.keys() == expected.keys()


def test_functional_gradients():
    """torch.func wraps tensors in ones without storage."""
    model, image = apply_algm(build("ViT"), **SETTINGS), photo()
    expected = gradients(model, model.forward_features(image).square().mean())
    parameters = dict(model.named_parameters())

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.forward_features(x)

    def loss(parameters):
        named = {f"model.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(Features(), named, (image,)).square().mean()

    found = torch.func.grad(loss)(parameters)
    assert_same({name: found[name] for name in expected}, expected, atol=1e-6, rtol=1e-5)
