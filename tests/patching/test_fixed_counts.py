"""With ``merge_to`` each merge leaves so many patches, whatever the images."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import apply_algm
from algm_patch.core.matching import num_proposals
from tests.support.batches import assert_as_alone, unlike
from tests.support.counting import Synchronisations
from tests.support.fixed_counts import FIXED_COUNTS, nearest_count, patches_left
from tests.support.models import build, photo

# How often the adapter reads the grid, where the model is told it as a tensor.
READS_OF_THE_GRID = {
    "timm Gemma 4": 3,
    "transformers Idefics 2": 1,
    "transformers Idefics 3": 1,
    "transformers Phi-4": 1,
    "transformers SigLIP 2": 1,
    "transformers SmolVLM": 1,
    "transformers ViT-MAE": 2,
}


def test_every_merge_keeps_its_share_of_any_images_without_waiting_for_the_device(every_model, request):
    model, images, final_tokens = every_model.model, every_model.images, every_model.final_tokens
    images = torch.cat([images, torch.zeros_like(images[:1])])
    with Synchronisations() as plain:
        whole = final_tokens(images)
    apply_algm(model, **FIXED_COUNTS)
    with Synchronisations() as fixed:
        final_tokens(images)
    assert fixed.count - plain.count == READS_OF_THE_GRID.get(request.node.callspec.params["every_model"], 0)
    algm = model.algm
    height, width = algm.last_pass.grid
    clapped = nearest_count(height * width, 0.6, (height // 2) * (width // 2))
    matched = round(0.6 * clapped)
    assert patches_left(algm) == [clapped, clapped, matched, matched, matched][: len(algm.tokens_per_layer)]
    assert (algm.token_map.sizes > 0).all()
    assert (algm.token_map.sizes.sum(1) == whole.shape[1]).all()
    assert_as_alone(algm, final_tokens, images[1:4])
    algm.merge_to = 1.0
    assert torch.equal(final_tokens(images), whole)
    assert set(algm.tokens_per_layer) == {whole.shape[1]}


@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from([(2, 2), (3, 2), (1, 2)]), st.floats(0.5, 1))
@torch.no_grad()
def test_any_share_of_any_grid(high, wide, window, share):
    grid = (high, wide)
    model = apply_algm(of_any_size(), clap_layer=1, gbm_layers=[2, 3], window=window, merge_to=share)
    model(photo(grid=grid))
    clapped, first, second = patches_left(model.algm)
    windows, size = (high // window[0]) * (wide // window[1]), window[0] * window[1]
    expected = nearest_count(high * wide, share, windows, size - 1)
    assert abs(clapped - share * high * wide) <= abs(expected - share * high * wide) + 1e-6
    for before, after in ((clapped, first), (first, second)):
        least = before - num_proposals(1 + before, 1)
        assert abs(after - max(share * before, least)) <= 0.5 + 1e-6


@cache
def of_any_size():
    return build("ViT", depth=3, dynamic_img_size=True)


@pytest.mark.parametrize(
    ("merge_to", "left"),
    [
        ([0.7, 0.6], [21, 21, 13, 13]),
        ([24, 15], [24, 24, 15, 15]),
        ([25, 0.5], [24, 24, 12, 12]),  # a window leaves three fewer
        ([12, 6], [12, 12, 6, 6]),
        ([30, 15], [30, 30, 15, 15]),
        ([1.0, 0.5], [30, 30, 15, 15]),
        ([0.25, 1.0], [12, 12, 12, 12]),  # five of the grid's 30 patches are in no window
        ((np.float32(0.5), np.int64(14)), [15, 15, 14, 14]),
    ],
)
@torch.no_grad()
def test_shares_and_numbers_for_each_merge(merge_to, left):
    model = apply_algm(build("ViT", depth=4), clap_layer=1, gbm_layers=[3], merge_to=merge_to)
    model(unlike(photo()))
    assert patches_left(model.algm) == left


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"clap_layer": None, "gbm_layers": [1, 3], "merge_to": [0.8, 14]}, [24, 24, 14, 14]),
        ({"clap_layer": 2, "gbm_layers": [], "merge_to": [0.3]}, [30, 12, 12, 12]),
        ({"clap_layer": 2, "gbm_layers": [], "merge_to": 0.3}, [30, 12, 12, 12]),
        ({"clap_layer": 2, "gbm_layers": [2, 4], "merge_to": 0.8}, [30, 19, 19, 15]),  # 24 after CLAP
        ({"clap_layer": 1, "gbm_layers": [2, 4], "merge_to": [27, 20, 10]}, [27, 20, 20, 10]),
        ({"clap_layer": 1, "gbm_layers": [3], "window": (3, 2), "merge_to": 0.6}, [20, 20, 12, 12]),
        ({"clap_layer": None, "gbm_layers": [], "merge_to": 0.6}, [30] * 4),
    ],
    ids=str,
)
@torch.no_grad()
def test_merges_in_other_layers(settings, kept):
    model = apply_algm(build("ViT", depth=4), **settings)
    model(unlike(photo()))
    assert patches_left(model.algm) == kept
    assert_as_alone(model.algm, model.forward_features, unlike(photo()))


@pytest.mark.parametrize("grid", [(1, 8), (8, 1), (1, 1), (1, 2), (2, 2), (3, 1)])
@torch.no_grad()
def test_grids_with_little_to_merge(grid):
    """These grids have no window, or no pair of tokens."""
    model = apply_algm(build("ViT", grid=grid, depth=3), clap_layer=1, gbm_layers=[2, 3], merge_to=0.5)
    model(photo(grid=grid))
    least = patches_left(model.algm)
    model.algm.merge_to = 1.0
    model(photo(grid=grid))
    assert patches_left(model.algm) == [grid[0] * grid[1]] * 3
    assert all(before >= after >= 1 for before, after in zip([grid[0] * grid[1], *least], least, strict=False))


@torch.no_grad()
def test_constant_images():
    model = apply_algm(build("ViT"), **FIXED_COUNTS)
    images = torch.cat([torch.zeros(1, 3, 96, 80), torch.ones(1, 3, 96, 80), unlike(photo())])
    model(images)
    assert patches_left(model.algm) == [18, 18, 11, 11, 11]
    assert_as_alone(model.algm, model.forward_features, images)


@torch.no_grad()
def test_the_way_to_batch_makes_no_difference():
    model, images, found = apply_algm(build("ViT"), **FIXED_COUNTS), unlike(photo()), []
    for batch in ("auto", "image", "min"):
        model.algm.batch = batch
        found.append(model(images))
        assert model.algm.token_map.packing is None
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("merge_to", "message"),
    [
        ([10, 0.6], "merge_to asks CLAP to leave 10 of 30 patches: it can leave 12 to 30"),
        ([31, 0.6], "merge_to asks CLAP to leave 31 of 30 patches"),
        ([0.6, 5], "merge_to asks GBM to leave 5 of 18 patches: it can leave 9 to 18"),
        ([0.6, 20], "merge_to asks GBM to leave 20 of 18 patches"),
    ],
)
@torch.no_grad()
def test_a_number_that_the_image_does_not_allow_is_named(merge_to, message):
    model = apply_algm(build("ViT"), clap_layer=1, gbm_layers=[3], merge_to=merge_to)
    with pytest.raises(ValueError, match=message):
        model(photo())
    model.algm.merge_to = 0.6
    model(photo())
    assert patches_left(model.algm) == [18, 18, 11, 11, 11]


@torch.no_grad()
def test_the_setting_changes_from_one_forward_pass_to_the_next():
    model, image = build("ViT"), photo()
    plain = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    by_threshold = model(image)
    model.algm.merge_to = 0.5
    assert model.algm.merge_to == 0.5
    model(image)
    assert patches_left(model.algm) == [15, 15, 8, 8, 8]
    assert "proportional attention on, merge_to 0.5" in str(model.algm)
    assert "layer 1: CLAP 30 -> 15, tau" in str(model.algm)
    model.algm.merge_to = [27, 0.6]
    assert model.algm.merge_to == (27, 0.6)
    model(image)
    assert patches_left(model.algm) == [27, 27, 16, 16, 16]
    for setting, value in {"tau": 0.9, "gbm_tau": 0.5, "merge_to": 0.1, "gbm_layers": [3, 4]}.items():
        with pytest.raises(ValueError, match="merge_to"):
            setattr(model.algm, setting, value)
    assert model.algm.merge_to == (27, 0.6)
    model.algm.merge_to = 1.0
    assert torch.equal(model(image), plain)
    model.algm.merge_to = None
    assert torch.equal(model(image), by_threshold)
