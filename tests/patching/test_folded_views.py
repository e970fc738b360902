"""Several views, frames or crops in one sequence: never taken for one image with a long prefix."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algm_patch import apply_algm
from algm_patch.core.compiling import ONE_GRAPH
from tests.support.models import build, photo
from tests.support.views import Alternating, Folding, scene

REFUSED = "ALGM merges in sequences of one grid each"


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
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=1.05, gbm_tau=1.05)
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


class Prompted(Folding):
    """Give more prompts than there are patches to its last block but one, and leave out the last."""

    def forward(self, image):
        x = self.blocks[0](self.embed(image))
        return self.blocks[1](torch.cat([torch.zeros(len(x), 2 * x.shape[1], x.shape[2]), x], 1))


@torch.no_grad()
def test_prompts_after_a_pass_without_the_last_block_are_no_views():
    model: Any = apply_algm(Prompted(depth=3), gbm_layers=[2], tau=0.5)
    outputs = [model(photo()) for _ in range(3)]
    assert all(torch.equal(outputs[0], output) for output in outputs)
