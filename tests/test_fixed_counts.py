"""The setting ``tokens``: each merge keeps so many patches, chosen by similarity alone, whatever the images."""

from functools import cache

import cases_segmenter
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, photo
from safetensors.torch import save_file
from test_batches import CLOSE, FEW, FEWER, assert_as_alone, batches, prepare, unlike, without_chance
from test_contract import CASES
from test_training import Synchronisations, assert_same, checkpointed, gradients
from torch._subclasses.fake_tensor import FakeTensorMode

from algm_patch import Settings, apply_algm
from algm_patch.core.matching import most_similar, num_proposals
from algm_patch.core.plan import plan_clap, plan_gbm

# How often the adapter reads the grid, where the model is told it as a tensor.
READS_OF_THE_GRID = {"transformers SigLIP 2": 1, "transformers ViT-MAE": 2}
HALF = {"clap_layer": 1, "gbm_layers": [3], "merge_to": 0.6}


@pytest.fixture(params=CASES)
def every(request):
    with torch.no_grad():
        yield prepare(request.param)


@pytest.fixture(params=FEW)
def few(request):
    with torch.no_grad():
        yield prepare(request.param)


def patches_kept(algm):
    """By block, of the last forward pass."""
    past = algm._past()
    prefix = algm.token_map.labels.shape[1] - past.grid[0] * past.grid[1]
    return [length - prefix for length in algm.tokens_per_layer]


def nearest(patches, share, windows, fewer=3):
    """What merging some of so many windows, each to so many patches fewer, leaves nearest to a share."""
    return min(
        (patches - fewer * merged for merged in range(windows + 1)), key=lambda kept: abs(kept - share * patches)
    )


# -- how many


def test_every_merge_keeps_its_share_of_any_images_without_waiting_for_the_device(every, request):
    model, images, call = every.model, every.images, every.call
    images = torch.cat([images, torch.zeros_like(images[:1])])
    with Synchronisations() as plain:
        whole = call(images)
    apply_algm(model, **HALF)
    with Synchronisations() as fixed:
        call(images)
    assert fixed.count - plain.count == READS_OF_THE_GRID.get(request.node.callspec.params["every"], 0)
    algm = model.algm
    height, width = algm._past().grid
    clapped = nearest(height * width, 0.6, (height // 2) * (width // 2))
    matched = round(0.6 * clapped)
    assert patches_kept(algm) == [clapped, clapped, matched, matched, matched][: len(algm.tokens_per_layer)]
    assert (algm.token_map.sizes > 0).all()
    assert (algm.token_map.sizes.sum(1) == whole.shape[1]).all()
    assert_as_alone(algm, call, images[1:4])
    algm.merge_to = 1.0
    assert torch.equal(call(images), whole)
    assert set(algm.tokens_per_layer) == {whole.shape[1]}


@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from([(2, 2), (3, 2), (1, 2)]), st.floats(0.5, 1))
@torch.no_grad()
def test_any_share_of_any_grid(high, wide, window, share):
    grid = (high, wide)
    model = apply_algm(of_any_size(), clap_layer=1, gbm_layers=[2, 3], window=window, merge_to=share)
    model(photo(grid=grid))
    clapped, first, second = patches_kept(model.algm)
    windows, size = (high // window[0]) * (wide // window[1]), window[0] * window[1]
    expected = nearest(high * wide, share, windows, size - 1)
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
def test_shares_and_numbers_for_each_merge(tokens, kept):
    model = apply_algm(build("ViT", depth=4), clap_layer=1, gbm_layers=[3], merge_to=tokens)
    model(unlike(photo()))
    assert patches_kept(model.algm) == kept


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
    model = apply_algm(build("ViT", depth=4), settings=settings)
    model(unlike(photo()))
    assert patches_kept(model.algm) == kept
    assert_as_alone(model.algm, model.forward_features, unlike(photo()))


@pytest.mark.parametrize("grid", [(1, 8), (8, 1), (1, 1), (1, 2), (2, 2), (3, 1)])
@torch.no_grad()
def test_grids_with_little_to_merge(grid):
    """No window, or no pair of tokens."""
    model = apply_algm(build("ViT", grid=grid, depth=3), clap_layer=1, gbm_layers=[2, 3], merge_to=0.5)
    model(photo(grid=grid))
    least = patches_kept(model.algm)
    model.algm.merge_to = 1.0
    model(photo(grid=grid))
    assert patches_kept(model.algm) == [grid[0] * grid[1]] * 3
    assert all(before >= after >= 1 for before, after in zip([grid[0] * grid[1], *least], least, strict=False))


@torch.no_grad()
def test_constant_images():
    model = apply_algm(build("ViT"), **HALF)
    images = torch.cat([torch.zeros(1, 3, 96, 80), torch.ones(1, 3, 96, 80), unlike(photo())])
    model(images)
    assert patches_kept(model.algm) == [18, 18, 11, 11, 11]
    assert_as_alone(model.algm, model.forward_features, images)


@torch.no_grad()
def test_the_way_to_batch_makes_no_difference():
    model, images, found = apply_algm(build("ViT"), **HALF), unlike(photo()), []
    for batch in ("auto", "image", "min"):
        model.algm.batch = batch
        found.append(model(images))
        assert model.algm.token_map.packing is None
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# -- which


def assert_most_similar(merged, similarity, count):
    """So many in every image, and none is less similar than one that was left; NaN is less than everything."""
    assert merged.sum(1).tolist() == [count] * len(merged)
    for chosen, values in zip(merged, similarity.nan_to_num(-torch.inf), strict=True):
        assert not len(values[chosen]) or not len(values[~chosen]) or values[chosen].min() >= values[~chosen].max()


@given(batches(), st.integers(1, 3), st.integers(2, 3), st.data())
def test_clap_merges_the_most_similar_windows_of_anything(case, high, wide, data):
    x, grid, prefix = case
    rows, columns = grid[0] // high, grid[1] // wide
    count = data.draw(st.integers(0, rows * columns))
    plan = plan_clap(x, grid, "auto", (high, wide), prefix, count)
    assert plan.step.sizes.shape == (len(x), x.shape[1] - count * (high * wide - 1))
    assert plan.step.packing is None
    labels = plan.step.labels[:, prefix:].unflatten(1, grid)[:, : rows * high, : columns * wide]
    corners = labels.unflatten(2, (columns, wide)).unflatten(1, (rows, high)).transpose(2, 3).flatten(3)
    merged = (corners == corners[..., :1]).all(-1).flatten(1)
    assert_most_similar(merged, plan.similarity.flatten(1), count)


@given(batches(), st.data())
def test_gbm_carries_out_the_most_similar_proposals_of_anything(case, data):
    x, _, prefix = case
    count = data.draw(st.integers(0, num_proposals(x.shape[1], prefix)))
    plan = plan_gbm(x, torch.ones(x.shape[:2]), "adaptive", 3, prefix, count)
    labels, sizes = plan.step.labels, plan.step.sizes
    assert sizes.shape == (len(x), x.shape[1] - count)
    start = prefix + prefix % 2
    if not num_proposals(x.shape[1], prefix):
        return
    receivers = labels[:, prefix + 1 - prefix % 2 :: 2]
    merged = (labels[:, start::2, None] == receivers[:, None]).any(-1)
    assert_most_similar(merged, plan.similarity, count)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.3, 0.9, 1.0, float("nan")]), min_size=1, max_size=30), st.data())
def test_what_is_not_finite_takes_no_place_among_the_best(values, data):
    similarity = torch.tensor([values, values[::-1]])
    count = data.draw(st.integers(0, len(values)))
    assert_most_similar(most_similar(similarity, count), similarity, count)


@pytest.mark.parametrize("settings", [{"compare": "key"}, {"place": "after_mlp"}], ids=str)
@torch.no_grad()
def test_with_other_settings(settings):
    model = apply_algm(build("ViT"), **HALF, **settings)
    assert_as_alone(model.algm, model.forward_features, unlike(photo()))
    assert patches_kept(model.algm) == [18, 18, 11, 11, 11]
    model.algm.reduce = "pick"
    model(unlike(photo()))
    assert patches_kept(model.algm) == [18, 18, 11, 11, 11]


@torch.no_grad()
def test_a_decoder_on_so_many_tokens():
    model, images = cases_segmenter.build("mask"), unlike(photo())
    apply_algm(model, **HALF, unmerge_at="after_head")
    assert_as_alone(model.algm, model, images)
    assert patches_kept(model.algm) == [18, 18, 11, 11, 11]


# -- settings


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"merge_to": 0.1}, ValueError, "merge_to=0.1: CLAP leaves a share of its patches between 0.25 and 1"),
        ({"merge_to": 0.4}, ValueError, "merge_to=0.4: GBM leaves a share of its patches between 0.5 and 1"),
        ({"merge_to": 0.1, "window": (3, 2)}, ValueError, "merge_to=0.1: CLAP .* between 0.166667 and 1"),
        ({"merge_to": [0.6, 0.4]}, ValueError, "merge_to=0.4: GBM"),
        ({"merge_to": 1.2}, ValueError, "merge_to=1.2: CLAP"),
        ({"merge_to": float("nan")}, ValueError, "merge_to=nan: CLAP"),
        ({"merge_to": 400}, TypeError, "a list with one share or whole number of patches for each merge; got 400"),
        ({"merge_to": 1}, TypeError, "merge_to is the share of the patches that each merge leaves, such as 0.6.*got 1"),
        ({"merge_to": True}, TypeError, "got True"),
        ({"merge_to": "0.6"}, TypeError, "got '0.6'"),
        ({"merge_to": [0.6]}, ValueError, r"merge_to=\[0.6\] for 2 merges: .*\(CLAP, GBM\), or one share for all"),
        ({"merge_to": [0.6] * 3}, ValueError, "for 2 merges"),
        ({"merge_to": [0.6], "clap_layer": None, "gbm_layers": []}, ValueError, "for 0 merges: .*there is none"),
        ({"merge_to": [True, 0.6]}, TypeError, "shares such as 0.6 and whole numbers of patches; got True"),
        ({"merge_to": [0.6, None]}, TypeError, "got None"),
        ({"merge_to": [0, 0.5]}, ValueError, "merge_to names 0 patches to leave: at least 1"),
        ({"merge_to": [0.5, -3]}, ValueError, "merge_to names -3 patches"),
        (
            {"merge_to": 0.6, "tau": 0.9},
            ValueError,
            "tau=0.9 by threshold. Give up one of them: merge_to=None",
        ),
        ({"merge_to": 0.6, "gbm_tau": 0.5}, ValueError, "gbm_tau=0.5 by threshold. Give up one of them"),
        ({"merge_to": 0.6, "tau": "paper"}, ValueError, "Give up one of them"),
        ({"merge_to": 0.6, "gbm_tau": "tau"}, ValueError, "Give up one of them"),
        ({"gbm_layers": [4, 2], "merge_to": [1.0, 0.5, 0.9]}, ValueError, r"for gbm_layers=\[4, 2\]: .* rising order"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused(settings, error, message):
    model = build("ViT")
    with pytest.raises(error, match=message):
        apply_algm(model, settings=settings)
    assert not hasattr(model, "algm")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([10, 0.6], "tokens asks CLAP to keep 10 of 30 patches: it can keep 12 to 30"),
        ([31, 0.6], "tokens asks CLAP to keep 31 of 30 patches"),
        ([0.6, 5], "tokens asks GBM to keep 5 of 18 patches: it can keep 9 to 18"),
        ([0.6, 20], "tokens asks GBM to keep 20 of 18 patches"),
    ],
)
@torch.no_grad()
def test_a_number_that_the_image_does_not_allow_is_named(tokens, message):
    model = apply_algm(build("ViT"), clap_layer=1, gbm_layers=[3], merge_to=tokens)
    with pytest.raises(ValueError, match=message):
        model(photo())
    model.algm.merge_to = 0.6
    model(photo())
    assert patches_kept(model.algm) == [18, 18, 11, 11, 11]


@torch.no_grad()
def test_the_setting_changes_from_one_forward_pass_to_the_next():
    model, image = build("ViT"), photo()
    plain = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    by_threshold = model(image)
    model.algm.merge_to = 0.5
    assert model.algm.merge_to == 0.5
    model(image)
    assert patches_kept(model.algm) == [15, 15, 8, 8, 8]
    assert "proportional attention on, merge_to 0.5" in str(model.algm)
    assert "layer 1: CLAP 31 -> 16, tau" in str(model.algm)
    model.algm.merge_to = [27, 0.6]
    assert model.algm.merge_to == (27, 0.6)
    model(image)
    assert patches_kept(model.algm) == [27, 27, 16, 16, 16]
    for setting, value in {"tau": 0.9, "gbm_tau": 0.5, "merge_to": 0.1, "gbm_layers": [3, 4]}.items():
        with pytest.raises(ValueError, match="merge_to"):
            setattr(model.algm, setting, value)
    assert model.algm.merge_to == (27, 0.6)
    model.algm.merge_to = 1.0
    assert torch.equal(model(image), plain)
    model.algm.merge_to = None
    assert torch.equal(model(image), by_threshold)


@pytest.mark.parametrize("tokens", [0.6, [0.7, 400], (27, 0.5), None])
def test_saved_and_loaded(tokens, tmp_path):
    settings = Settings(clap_layer=1, gbm_layers=[3], merge_to=tokens)
    settings.save(tmp_path / "settings.json")
    save_file(build("ViT", depth=3).state_dict(), tmp_path / "weights.safetensors", metadata=settings.metadata())
    for path in ("settings.json", "weights.safetensors"):
        loaded = Settings.load(tmp_path / path)
        assert loaded == settings
        assert loaded.tokens == (tuple(tokens) if isinstance(tokens, list) else tokens)
        model = apply_algm(build("ViT"), **loaded)
        assert model.algm.settings == settings


# -- static, deterministic, in half precision


@pytest.mark.parametrize("name", FEWER)
@torch.no_grad()
def test_shapes_depend_on_no_value(name):
    """Tensors without values go through: what CUDA graphs and export need."""
    few = prepare(name)
    model, images, call = few.model, few.images, few.call
    apply_algm(model, **HALF)
    expected = call(images)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = call(mode.from_tensor(images))
    assert found.shape == expected.shape
    assert patches_kept(model.algm)[-1] < expected.shape[1] / 2


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["timm ViT", "timm EVA-02", "timm BEiT", "transformers DINOv3", "open_clip"])
def test_with_deterministic_algorithms(name):
    few = prepare(name)
    apply_algm(without_chance(few.model), **HALF)
    found = [gradients(few.model, few.call(few.images).square().mean()) for _ in range(2)]
    assert_same(*found, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(few, dtype):
    model, images = few.model.to(dtype), few.images.to(dtype)
    apply_algm(model, **HALF)
    output = few.call(images)
    assert output.dtype == dtype
    assert output.isfinite().all()
    height, width = model.algm._past().grid
    assert patches_kept(model.algm)[0] == nearest(height * width, 0.6, (height // 2) * (width // 2))


def test_gradients_are_the_sum_of_those_of_each_image():
    model, images = build("EVA-02").double().train(), unlike(photo("EVA-02")).double()
    apply_algm(model, **HALF)
    weights = torch.randn(4, 31, 64)
    together = gradients(model, (model.forward_features(images) * weights).sum())
    alone = [
        gradients(model, (model.forward_features(image[None]) * weight).sum())
        for image, weight in zip(images, weights, strict=True)
    ]
    assert_same(together, {key: sum(one[key] for one in alone) for key in together}, **CLOSE)


@pytest.mark.parametrize("how", ["blocks", "whole model"])
def test_recomputation(how):
    model, images = apply_algm(build("ViT").train(), **HALF), unlike(photo())
    expected = gradients(model, model.forward_features(images).square().mean())
    found = gradients(model, checkpointed(model, how)(images).square().mean())
    assert_same(found, expected, atol=0, rtol=0)
