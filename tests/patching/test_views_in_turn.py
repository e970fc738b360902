"""Blocks that are given each view of a scene, and blocks that are given all views, in turn."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm
from tests.support.views import WIDTH, Alternating, Interleaved, scene

sides, few = st.integers(1, 5), st.integers(0, 3)
together = st.sets(st.integers(0, 5), min_size=1)


@torch.no_grad()
@settings(deadline=None, max_examples=40)
@given(together, st.integers(1, 2), st.integers(2, 3), st.integers(2, 5), sides, few, st.permutations(range(3)))
def test_blocks_on_all_views_run_as_ever_and_others_merge_in_each(mixed, batch, views, height, width, inside, order):
    torch.manual_seed(0)
    model: Any = Alternating(inside, together=mixed).eval()
    images = scene(batch, views, height, width)
    expected = model(images)
    first, *others = [layer + 1 for layer in range(6) if layer not in mixed] or [0]
    apply_algm(model, clap_layer=first or None, gbm_layers=others[-1:], tau=1.05, gbm_tau=1.05)
    assert torch.equal(model(images), expected)
    if not first:
        return
    model.algm.update(tau=0.3, gbm_tau=0.3)
    found = model(images)
    assert model.algm.last_pass.batch == batch * views
    for layer, block in model.algm.last_pass.blocks.items():
        assert block.views == (views if layer in mixed else 1)
        assert block.idle or layer not in mixed or layer > first - 1
    order = [view for view in order if view < views]
    shuffled = model(images[:, order])
    torch.testing.assert_close(
        shuffled.unflatten(1, (views, -1)), found.unflatten(1, (views, -1))[:, order], rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(2, 3), st.integers(2, 5), st.integers(2, 5), few, st.booleans(), st.booleans())
def test_merged_tokens_attend_over_all_views_if_their_order_is_known(
    batch, views, height, width, inside, ordered, restore
):
    torch.manual_seed(0)
    kind = Alternating if ordered else Interleaved
    model: Any = kind(inside, together=[1, 2, 4]).eval()
    images, whole = scene(batch, views, height, width), inside + height * width
    apply_algm(model, clap_layer=1, gbm_layers=[4], tau=0.2, gbm_tau=0.5, restore=restore)
    found = model(images)
    tokens, last_pass = model.algm.tokens_per_layer, model.algm.last_pass
    assert tokens[0] < whole
    for layer in (1, 2, 4):
        block = last_pass.blocks[layer]
        assert (block.views, block.idle) == (views, not ordered)
        if not ordered:
            assert tokens[layer] == whole
            continue
        counts = (last_pass.blocks[{1: 0, 2: 0, 4: 3}[layer]].after.sizes > 0).sum(1)
        sums = counts.unflatten(0, (batch, views)).sum(1)
        assert torch.equal((block.after.sizes > 0).sum(1), sums)
        assert torch.equal(block.after.sizes.sum(1), torch.full((batch,), float(views * whole)))
    if not restore:
        expected = reference(model, images, ordered)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert 0 < model.algm.gflops < model.algm.unpatched_gflops


def reference(model, images, ordered):
    """Return what a patched model leaves, whose blocks on all views run on the full grids as they ever did.

    Copies of one group have equal outputs, and weigh as a merged token with its size does.
    """
    on_full_grids = [type(model.blocks[layer]).algm_original for layer in model.together]
    shadow = {layer: model.blocks[layer] for layer in model.together}
    for layer, original in zip(shadow, on_full_grids, strict=True):
        block = copy.deepcopy(shadow[layer])
        block.__class__ = original
        model.blocks[layer] = Wrapped(shadow[layer], block)
    try:
        return model(images)
    finally:
        for layer, block in shadow.items():
            model.blocks[layer] = block


class Wrapped(nn.Module):
    """Holds a patched block, and runs another in its place."""

    def __init__(self, patched, block):
        super().__init__()
        self.patched, self.block = patched, [block]

    def forward(self, x):
        return self.block[0](x)


@torch.no_grad()
def test_the_cost_of_attention_is_that_of_all_views_together():
    costs = []
    for mixed in ([], [1]):
        model: Any = Alternating(0, together=mixed, depth=3).eval()
        apply_algm(model, clap_layer=None, gbm_layers=[3], gbm_tau=1.05)
        model(scene(1, 3, 4, 4))
        assert model.algm.gflops == model.algm.unpatched_gflops
        costs.append(model.algm.gflops)
    # Queries with the keys of two other views, and weights with their values: a multiplication and an addition each.
    assert costs[1] - costs[0] == pytest.approx(2 * 2 * 16 * 32 * WIDTH / 1e9)


@torch.no_grad()
def test_a_block_on_all_views_that_is_to_merge_is_refused():
    model: Any = apply_algm(Alternating(together=[3]).eval(), clap_layer=1, gbm_layers=[4])
    with pytest.raises(ValueError, match=r"block 4 was given .* set clap_layer and gbm_layers to blocks"):
        model(scene(1, 2, 4, 4))
    model.algm.gbm_layers = [5]
    model(scene(1, 2, 4, 4))


@pytest.mark.parametrize("kind", [Alternating, Interleaved])
def test_recomputation_finds_the_same_gradients(kind):
    torch.manual_seed(0)
    model: Any = kind(1, together=[1, 3]).train()
    images = scene(2, 3, 4, 4)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.2)
    expected = gradients(model, model(images).square().mean())
    blocks = list(model.blocks)
    for layer, block in enumerate(blocks):
        model.blocks[layer] = Checkpointed(block)
    found = gradients(model, model(images).square().mean())
    assert all(map(torch.equal, found, expected))


def gradients(model, loss):
    return torch.autograd.grad(loss, [each for each in model.parameters() if each.numel()])


class Checkpointed(nn.Module):
    """Runs a block anew in the backward pass."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)
