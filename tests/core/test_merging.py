"""Properties of clap and gbm, on any input."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core.matching import window_similarity
from algm_patch.functional import TokenMap, clap, gbm
from tests.support.largest import Largest

KINDS = ["random", "smooth", "constant", "zero", "nan", "inf", "huge"]


@st.composite
def sequences(draw):
    batch, prefix = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    grid = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(batch, prefix + grid[0] * grid[1], draw(st.integers(1, 6)), generator=generator)
    if kind == "smooth":
        x[:, prefix:] = x[:, prefix:].cumsum(1)
    elif kind in ("constant", "zero"):
        x[:, prefix:] = kind == "constant"
    elif kind in ("nan", "inf"):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = float(kind)
    elif kind == "huge":
        x *= 1e30
    return x, grid, prefix, kind


def check_merge(x, prefix, merged, token_map):
    """Assert what holds of every merge."""
    batch = len(x)
    count = merged.shape[1]
    labels, sizes = token_map.labels, token_map.sizes
    assert labels.min() >= 0
    for row in labels:  # a partition, numbered by first members
        assert list(dict.fromkeys(row.tolist())) == list(range(count))
    assert sizes.shape == (batch, count)
    assert (sizes.sum(1) == labels.shape[1]).all()
    assert torch.equal(labels[:, :prefix], torch.arange(prefix).expand(batch, -1))
    assert (sizes[:, :prefix] == 1).all()
    assert torch.equal(merged[:, :prefix].nan_to_num(), x[:, :prefix].nan_to_num())


@given(sequences(), st.sampled_from([-1.0, 0.0, 0.5, 0.9, 1.0, 2.0, "auto"]), st.integers(1, 3), st.integers(2, 4))
def test_clap_of_anything(case, tau, high, wide):
    x, grid, prefix, kind = case
    merged, token_map = clap(x, grid, tau, window=(high, wide), num_prefix_tokens=prefix)
    check_merge(x, prefix, merged, token_map)
    sizes = set(token_map.sizes[:, prefix:].unique().tolist())
    assert sizes <= {1.0, float(high * wide)}
    if tau == 2.0:
        assert torch.equal(merged.nan_to_num(), x.nan_to_num())
    similarity = window_similarity(x[:, prefix:], grid, (high, wide)).flatten(1)
    # Opposite tokens never merge by "auto", and all images merge as few windows as any of them.
    something = similarity.numel() and (tau == -1.0 or (tau == "auto" and similarity.amax(1).min() > -0.99999))
    if kind not in ("nan", "inf", "zero") and something:
        assert merged.shape[1] < x.shape[1]
    if kind not in ("nan", "inf"):
        torch.testing.assert_close(merged, token_map.merge(x))


@given(sequences(), st.sampled_from([-1.0, 0.5, 1.0, 2.0, "adaptive"]), st.integers(1, 40))
def test_gbm_of_anything(case, tau, layer):
    x, grid, prefix, kind = case
    once, local = clap(x, grid, 0.5, num_prefix_tokens=prefix)
    merged, token_map = gbm(once, local, layer=layer, tau=tau, num_prefix_tokens=prefix)
    check_merge(once, prefix, merged, token_map)
    if tau == 2.0:
        assert torch.equal(merged.nan_to_num(), once.nan_to_num())
    proposals = len(range(prefix + prefix % 2, once.shape[1], 2)) if once.shape[1] > prefix + 1 else 0
    assert once.shape[1] - merged.shape[1] <= proposals
    if tau == -1.0 and kind not in ("nan", "inf"):
        assert once.shape[1] - merged.shape[1] == proposals
    if kind not in ("nan", "inf", "huge"):  # the mean of means weighs every original token alike
        torch.testing.assert_close(merged, token_map.merge(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_what_is_not_finite_stays_where_it_is(kind):
    x = torch.randn(1, 17, 8).cumsum(1)
    spoilt = x.clone()
    spoilt[0, 6] = float(kind)
    merged, token_map = clap(spoilt, (4, 4), -1.0)
    holder = token_map.labels[0, 6]
    assert torch.isfinite(merged[0, torch.arange(merged.shape[1]) != holder]).all()


def test_the_window_mean_is_over_ordered_pairs_of_different_tokens():
    x = torch.randn(1, 4, 3)
    cosines = torch.nn.functional.cosine_similarity(x[0, :, None], x[0, None], dim=-1)
    similarity = cosines[~torch.eye(4, dtype=torch.bool)].mean().item()
    assert clap(x, (2, 2), similarity - 1e-4, num_prefix_tokens=0)[0].shape[1] == 1
    assert clap(x, (2, 2), similarity + 1e-4, num_prefix_tokens=0)[0].shape[1] == 4


def test_a_window_of_three_by_two_and_its_leftovers():
    _merged, token_map = clap(torch.ones(1, 35, 2), (7, 5), 0.9, window=(3, 2), num_prefix_tokens=0)
    assert token_map.labels.view(7, 5).tolist() == [
        [0, 0, 1, 1, 2],
        [0, 0, 1, 1, 3],
        [0, 0, 1, 1, 4],
        [5, 5, 6, 6, 7],
        [5, 5, 6, 6, 8],
        [5, 5, 6, 6, 9],
        [10, 11, 12, 13, 14],
    ]


def test_a_batch_merges_the_smallest_count_of_each_images_own_best():
    tokens = torch.randn(2, 64, 16).cumsum(1)
    alone = [clap(image[None], (8, 8), 0.8, num_prefix_tokens=0) for image in tokens]
    merged, token_map = clap(tokens, (8, 8), 0.8, num_prefix_tokens=0)
    assert merged.shape[1] == max(one.shape[1] for one, _ in alone)
    for image in range(2):  # every group of the batch is a group of the image alone
        together = (token_map.labels[image][:, None] == token_map.labels[image]).float()
        by_itself = (alone[image][1].labels[0][:, None] == alone[image][1].labels[0]).float()
        assert (together <= by_itself).all()


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_what_is_not_finite_takes_no_place_among_the_best_of_its_image(spoilt):
    tokens = torch.randn(2, 64, 16).cumsum(1)
    tokens[1, 10, 3] = spoilt
    _, token_map = clap(tokens, (8, 8), 0.8, num_prefix_tokens=0)
    assert token_map.sizes.max() == 4
    assert token_map.sizes[1, token_map.labels[1, 10]] == 1
    _, token_map = gbm(tokens, TokenMap.identity(2, 64), layer=1, tau=0.8, num_prefix_tokens=0)
    assert token_map.sizes.max() > 1
    assert token_map.sizes[1, token_map.labels[1, 10]] == 1


@pytest.mark.parametrize(("batch", "side"), [(1, 128), (5, 64)])
def test_similarities_are_held_in_chunks_and_the_rest_is_linear_in_the_tokens(batch, side):
    x = torch.randn(batch, side * side, 4)
    with Largest() as largest:
        merged, _token_map = gbm(x, TokenMap.identity(*x.shape[:2]), layer=5, num_prefix_tokens=0)
    assert largest.bytes <= 64 * 2**20
    assert merged.shape[1] < x.shape[1]
    with Largest() as largest:
        clap(x, (side, side), 0.0, num_prefix_tokens=0)
    assert largest.bytes <= 4 * batch * side * side * 8


def test_chunks_do_not_change_the_matches(monkeypatch):
    x = torch.randn(2, 300, 8)
    whole = gbm(x, TokenMap.identity(2, 300), layer=3)
    monkeypatch.setattr("algm_patch.core.nearest.CHUNK_BYTES", 2 * 150 * 4 * 7)
    chunked = gbm(x, TokenMap.identity(2, 300), layer=3)
    assert torch.equal(whole[1].labels, chunked[1].labels)


def test_matching_is_in_float32_under_autocast_and_in_half_precision():
    half = torch.randn(1, 1025, 32).cumsum(1).bfloat16()
    x, identity = half.float(), TokenMap.identity(1, 1025)
    local, everywhere = clap(x, (32, 32), 0.99)[1].labels, gbm(x, identity, layer=2)[1].labels
    assert 100 < local.max() < 1000
    assert torch.equal(clap(half, (32, 32), 0.99)[1].labels, local)
    assert torch.equal(gbm(half, identity, layer=2)[1].labels, everywhere)
    with torch.autocast("cpu"):
        assert torch.equal(clap(x, (32, 32), 0.99)[1].labels, local)
        assert torch.equal(gbm(x, identity, layer=2)[1].labels, everywhere)


def test_the_published_rule_says_when_it_merges_nothing():
    x = torch.ones(1, 64, 4)
    x[:, :2] = -1  # almost all windows alike: mean + std is above them all
    with pytest.warns(UserWarning, match="tau='paper' merges no windows here: mean \\+ standard deviation is 1\\.2"):
        assert clap(x, (8, 8), "paper", num_prefix_tokens=0)[0].shape[1] == 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clap(torch.randn(1, 64, 4), (8, 8), "paper", num_prefix_tokens=0)[0].shape[1] < 64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: clap(x, (4, 5), 0.9), ValueError, "17 tokens where 1 prefix \\+ 4x5 patches are 21"),
        (lambda x: clap(x, (4, 4), -1.5), ValueError, "tau is a cosine"),
        (lambda x: clap(x, (4, 4), float("nan")), ValueError, "tau is a cosine"),
        (lambda x: clap(x, (4, 4), "adaptive"), ValueError, "'auto', 'paper'"),
        (lambda x: clap(x, (4, 4), None), TypeError, "tau is a number"),  # type: ignore[arg-type]
        (lambda x: clap(x, (4, 4), 0.9, window=(1, 1)), ValueError, "at least two tokens"),
        (lambda x: clap(x, (4, 4), 0.9, window=2), TypeError, "window is \\(height, width\\)"),  # type: ignore[arg-type]
        (lambda x: clap(x[0], (4, 4), 0.9), ValueError, "\\[B, P\\+N, D\\]"),
        (lambda x: gbm(x, TokenMap.identity(1, 20), layer=5), ValueError, "the map that came with these tokens"),
        (lambda x: gbm(x, TokenMap.identity(1, 17), layer=0), ValueError, "counts blocks from 1"),
        (lambda x: gbm(x, TokenMap.identity(1, 17), layer=5, tau="auto"), ValueError, "'adaptive'"),
        (lambda x: gbm(x, TokenMap.identity(1, 17), layer=5, num_prefix_tokens=18), ValueError, "does not fit"),
    ],
)
def test_errors_name_what_was_found_and_expected(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(1, 17, 4))


@pytest.mark.parametrize("batch", ["image", "min"])
def test_the_functions_take_an_empty_batch(batch):
    merged, token_map = clap(torch.randn(0, 31, 8), (6, 5), "auto", batch=batch)
    assert merged.shape == (0, 31, 8)
    merged, token_map = gbm(merged, token_map, layer=2, batch=batch)
    assert merged.shape == (0, 31, 8)
    assert token_map.unmerge(merged).shape == (0, 31, 8)
