"""Any loop over the blocks gets what it would get if every block gave back the full grid."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from algm_patch import apply_algm
from tests.support.batches import unlike
from tests.support.contract import permute_in_place_of_clap
from tests.support.loops import ACTIONS, at_every_block, run_loop
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
MODES = (torch.no_grad, torch.inference_mode)
LOOPS = st.tuples(
    st.lists(st.sampled_from(sorted(ACTIONS)), min_size=5, max_size=5), st.sets(st.integers(0, 4), max_size=2)
)


def assert_same(found, expected, restore=True):
    """Assert equality to the last bit; to rounding if grids are restored, whose means the next block takes again."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if restore:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(one, other)
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@given(LOOPS, st.sampled_from(["image", "min"]), st.sampled_from(MODES), st.booleans(), st.booleans())
def test_any_loop_gets_what_full_grids_at_every_block_give(loop, batch, mode, alike, restore):
    images = photo(batch=4) if alike else unlike(photo())
    model = apply_algm(build("ViT"), **SETTINGS, batch=batch, restore=restore)
    with mode():
        with at_every_block():
            expected = run_loop(model, images, *loop)
            layers = model.algm.tokens_per_layer
        found = run_loop(model, images, *loop)
    assert model.algm.tokens_per_layer == layers
    assert_same(found, expected, restore)


@given(loop=LOOPS, mode=st.sampled_from(MODES))
def test_any_loop_gets_what_it_got_unpatched_where_tokens_only_change_places(loop, mode):
    model = build("ViT")
    with mode():
        expected = run_loop(model, photo(), *loop)
        with pytest.MonkeyPatch.context() as patch:
            permute_in_place_of_clap(patch)
            apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
            found = run_loop(model, photo(), *loop)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_stay_merged_between_blocks_where_nothing_reads_them(mode):
    model = apply_algm(build("ViT"), **SETTINGS)
    with mode():
        run_loop(model, photo(), ["nothing", "keep", "ask for the form", "grid", "nothing"])
    assert "between them, the full grid was read after layer 4" in str(model.algm)
    with mode():
        run_loop(model, photo(), ["keep"] * 5)
    assert "between them, nothing read the full grid" in str(model.algm)
    with mode():
        run_loop(model, photo(), ["add"] * 5)
    assert str(model.algm).endswith("every block gave back the full grid: a method that ALGM does not know ran them")


def test_a_loop_that_needs_gradients_is_told_what_it_pays():
    model = apply_algm(build("ViT"), **SETTINGS)
    kept = run_loop(model, photo(), ["keep"] * 5)
    assert all(type(x) is torch.Tensor and x.requires_grad for x in kept)
    assert "ran them, with gradients or a compiler. With neither, they give it back where" in str(model.algm)
    assert "reads_blocks" in str(model.algm)


@torch.no_grad()
def test_behind_the_last_block_all_is_ordinary():
    model = apply_algm(build("ViT"), **SETTINGS)
    kept = run_loop(model, photo(), ["keep"] * 5)
    assert {type(x) for x in kept} == {torch.Tensor}
    with at_every_block():
        assert_same(kept, run_loop(model, photo(), ["keep"] * 5))


class EndsEarly(nn.Module):
    """Runs four of five blocks, and returns what they left."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, image):
        x, kept = self.vit._pos_embed(self.vit.patch_embed(image)), []
        for block in self.vit.blocks[:4]:
            x = block(x)
            kept.append(x)
        return kept


@torch.no_grad()
def test_behind_a_loop_that_ends_early_all_is_ordinary():
    model = apply_algm(EndsEarly(build("ViT")), **SETTINGS)
    kept = model(photo())
    assert "nothing read the full grid" in str(model.algm)
    assert {type(x) for x in kept} == {torch.Tensor}
    with at_every_block():
        assert_same(kept, model(photo()))


@torch.no_grad()
def test_a_block_that_writes_its_input_leaves_what_was_kept_alone():
    model = apply_algm(build("ViT"), **SETTINGS)
    for block in model.blocks:
        block.norm1.register_forward_pre_hook(lambda _, inputs: inputs[0].mul_(1.1) is None or None)
    actions = ["keep", "nothing", "keep", "keep", "nothing"]
    with at_every_block():
        expected = run_loop(model, photo(), actions)
    assert_same(run_loop(model, photo(), actions), expected)


@torch.no_grad()
def test_two_loops_in_turns_go_their_own_ways():
    model = apply_algm(build("ViT"), **SETTINGS)
    images = photo(seed=0), photo(seed=1)
    expected = [run_loop(model, image, ["nothing"] * 5)[-1] for image in images]
    xs = [model._pos_embed(model.patch_embed(image)) for image in images]
    for block in model.blocks:
        xs = [block(x) for x in xs]
    for x, other in zip(xs, expected, strict=True):
        assert torch.equal(x, other)
