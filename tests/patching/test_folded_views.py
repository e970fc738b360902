"""Several views, frames or crops in one sequence: never taken for one image with a long prefix."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import nn

from algm_patch import apply_algm
from algm_patch.core.compiling import ONE_GRAPH
from tests.support.models import build, photo

WIDTH = 16
REFUSED = "ALGM merges in sequences of one grid each"


class Folding(nn.Module):
    """Folds the views of a scene into one sequence, with tokens of its own before each view, and before all."""

    def __init__(self, inside: int = 0, before: int = 0, depth: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.inside, self.before = (nn.Parameter(torch.randn(1, count, WIDTH)) for count in (inside, before))
        self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(depth))

    def embed(self, images):
        x = self.patches(images).flatten(2).mT
        return torch.cat([self.inside.expand(len(x), -1, -1), x], 1)

    def fold(self, views):  # [B, V, 3, h, w]
        return self.embed(views.flatten(0, 1)).unflatten(0, views.shape[:2]).flatten(1, 2)

    def forward(self, views):
        x = self.fold(views)
        x = torch.cat([self.before.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


class OneByOne(Folding):
    """Embeds one view after the other."""

    def fold(self, views):
        return torch.cat([self.embed(view) for view in views.unbind(1)], 1)


class RunOneByOne(Folding):
    """Runs the first block on one view after the other, and the others on all views of a scene."""

    def forward(self, views):
        x = torch.cat([self.blocks[0](self.embed(view)) for view in views.unbind(1)], 1)
        for block in self.blocks[1:]:
            x = block(x)
        return x


class Alternating(Folding):
    """Runs some blocks on each view, and others on all views of a scene."""

    def __init__(self, inside: int = 0, before: int = 0, depth: int = 6, together=(1,)):
        super().__init__(inside, 0, depth)
        self.together = set(together)

    def forward(self, views):
        x = self.embed(views.flatten(0, 1))
        for layer, block in enumerate(self.blocks):
            if layer in self.together:
                x = block(x.unflatten(0, views.shape[:2]).flatten(1, 2)).unflatten(1, (views.shape[1], -1))
                x = x.flatten(0, 1)
            else:
                x = block(x)
        return x.unflatten(0, views.shape[:2]).flatten(1, 2)


def scene(batch, views, height, width):
    return torch.rand(batch, views, 3, height * 4, width * 4)


sides, few = st.integers(1, 5), st.integers(0, 3)


@torch.no_grad()
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([Folding, OneByOne, RunOneByOne, Alternating]),
    st.integers(1, 3),
    st.integers(1, 4),
    sides,
    sides,
    few,
    few,
)
def test_one_view_is_an_image_and_more_are_refused(kind, batch, views, height, width, inside, before):
    model: Any = kind(inside, before).eval()
    images = scene(batch, views, height, width)
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.5)
    if views > 1:
        with pytest.raises(ValueError, match=REFUSED):
            model(images)
        return
    model(images)
    prefix = inside + (0 if kind in (RunOneByOne, Alternating) else before)
    assert model.algm.last_pass.num_prefix_tokens == prefix
    assert model.algm.last_pass.batch == batch
    labels = model.algm.token_map.labels
    assert torch.equal(labels[:, :prefix], torch.arange(prefix).expand(batch, -1))


def test_the_numbers_are_named():
    model: Any = apply_algm(Folding(inside=1).eval(), clap_layer=1, gbm_layers=[2])
    message = r"block 1 was given \[2, 63, 16\]: 2 sequences of 63 tokens, made of 6 grids of 4x5 patches"
    with pytest.raises(ValueError, match=message):
        model(scene(2, 3, 4, 5))


@torch.no_grad()
def test_a_batch_that_is_concatenated_is_refused():
    model = build("ViT")
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    x = model._pos_embed(model.patch_embed(photo(batch=2)))
    with pytest.raises(ValueError, match=REFUSED):
        model.blocks(x.flatten(0, 1)[None])


@torch.no_grad()
def test_windows_as_a_batch_are_refused():
    model = build("ViT", grid=(6, 6))
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    x = model.patch_embed(photo(grid=(6, 6))).unflatten(1, (2, 3, 2, 3)).transpose(2, 3).flatten(0, 2).flatten(1, 2)
    with pytest.raises(ValueError, match=r"given \[8, 9, 64\] .* no image cut up \(windows\)"):
        model.blocks(x)


@torch.no_grad()
@pytest.mark.parametrize("joined", [1, 100])
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_images_that_are_embedded_in_chunks_are_a_batch_with_any_prefix(chunks, joined):
    model: Any = Folding(inside=joined).eval()
    images = scene(4, 1, 4, 4)[:, 0]
    x = torch.cat([model.embed(chunk) for chunk in images.chunk(chunks)])
    expected = model.blocks[1](model.blocks[0](x))
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=2.0, gbm_tau=2.0)
    x = torch.cat([model.embed(chunk) for chunk in images.chunk(chunks)])
    assert torch.equal(model.blocks[1](model.blocks[0](x)), expected)
    assert model.algm.last_pass.num_prefix_tokens == joined


@torch.no_grad()
@pytest.mark.skipif(not ONE_GRAPH, reason="older exports run other copies of the blocks")
@pytest.mark.parametrize("kind", [Folding, OneByOne])
def test_an_export_is_refused_too(kind):
    model: Any = apply_algm(kind().eval(), clap_layer=1, gbm_layers=[2], merge_to=0.5)
    with pytest.raises(Exception, match=REFUSED):
        torch.export.export(model, (scene(2, 2, 4, 4),), strict=False)


@torch.no_grad()
def test_a_pass_that_was_left_early_does_not_count():
    model: Any = apply_algm(Folding(inside=2).eval(), clap_layer=1, gbm_layers=[2])
    for _ in range(3):
        model.embed(scene(2, 1, 4, 4)[:, 0])
    model(scene(2, 1, 4, 4))
    assert model.algm.last_pass.num_prefix_tokens == 2


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
    apply_algm(model, clap_layer=first or None, gbm_layers=others[-1:], tau=2.0, gbm_tau=2.0)
    assert torch.equal(model(images), expected)
    if not first:
        return
    model.algm.update(tau=0.3, gbm_tau=0.3)
    found = model(images)
    assert model.algm.last_pass.batch == batch * views
    for layer, block in model.algm.last_pass.blocks.items():
        assert block.views == (views if layer in mixed else 1)
        assert layer not in mixed or model.algm.tokens_per_layer[layer] == inside + height * width
    order = [view for view in order if view < views]
    shuffled = model(images[:, order])
    torch.testing.assert_close(
        shuffled.unflatten(1, (views, -1)), found.unflatten(1, (views, -1))[:, order], rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
def test_groups_outlast_a_block_on_all_views():
    torch.manual_seed(0)
    model: Any = Alternating(2, together=[2]).eval()
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.2)
    seen = []
    model.blocks[3].register_forward_hook(lambda block, args, output: seen.append((args[0], output)))
    model(scene(2, 3, 4, 5))
    one, two, three, four = model.algm.tokens_per_layer[:4]
    assert four == two < one < three == 22
    labels = model.algm.last_pass.blocks[1].after.labels
    ((given_tokens, output),) = seen
    same = labels[:, :, None] == labels[:, None]
    spread = (output[:, :, None] - output[:, None]).abs().amax(-1)
    assert spread[same].max() == 0
    assert given_tokens.shape == output.shape
    assert "several views in one sequence, on their full grids, in layer 3" in str(model.algm)


@torch.no_grad()
def test_the_cost_of_attention_is_that_of_all_views_together():
    costs = []
    for mixed in ([], [1]):
        model: Any = Alternating(0, together=mixed, depth=3).eval()
        apply_algm(model, clap_layer=None, gbm_layers=[3], gbm_tau=2.0)
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
