"""Fixed counts merge the most similar tokens."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core import matching
from algm_patch.core.matching import most_similar, num_proposals
from algm_patch.core.plan import plan_clap, plan_gbm
from tests.support.batches import batches


def assert_most_similar(merged, similarity, count):
    """Assert that ``count`` tokens of every image merged, none less similar than one that did not. NaN is least."""
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


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 1e-38, 0.9, 1.0, float("nan"), -torch.inf, torch.inf]), min_size=1),
    st.integers(1, 5),
    st.data(),
)
def test_of_equal_ones_the_first_whatever_an_engine_takes_at_once(values, at_once, data):
    similarity = torch.tensor([values, values[::-1]])
    count = data.draw(st.integers(0, len(values)))
    order = similarity.masked_fill(similarity.isnan(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    first = torch.zeros_like(similarity).bool().scatter(1, order[:, :count], torch.tensor(True).expand_as(order))
    with mock.patch.object(matching, "LARGEST_TOPK", at_once):
        assert torch.equal(most_similar(similarity, count), first)
    assert torch.equal(most_similar(similarity, count), first)
