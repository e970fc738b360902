"""TokenMap: there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.functional import TokenMap


@st.composite
def maps(draw):
    """Draw partitions of a few sequences into the same number of groups, numbered by their first members."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    count = draw(st.integers(1, length))
    rows = []
    for _ in range(batch):
        groups = [*range(count), *(draw(st.integers(0, count - 1)) for _ in range(length - count))]
        rows.append(draw(st.permutations(groups)))
    labels = torch.tensor([[list(dict.fromkeys(row)).index(group) for group in row] for row in rows])
    return TokenMap(labels, torch.nn.functional.one_hot(labels, count).sum(1).float())


@given(maps())
def test_merge_is_the_mean_of_each_group(token_map):
    x = torch.randn(*token_map.labels.shape, 3)
    merged = token_map.merge(x)
    for b, labels in enumerate(token_map.labels):
        for group in range(token_map.sizes.shape[1]):
            torch.testing.assert_close(merged[b, group], x[b, labels == group].mean(0))


@given(maps())
def test_merging_what_was_unmerged_gives_it_back(token_map):
    x = torch.randn(*token_map.sizes.shape, 3)
    torch.testing.assert_close(token_map.merge(token_map.unmerge(x)), x)
    assert torch.equal(token_map.take(token_map.unmerge(x)), x)


@given(maps())
def test_take_and_pair_read_the_first_members(token_map):
    batch, length = token_map.labels.shape
    position = torch.arange(length)[None]
    first = token_map.take(position)
    assert torch.equal(token_map.take(position[0]), first)
    angles = torch.randn(length, 4)
    assert torch.equal(token_map.take(angles), angles[first])
    assert torch.equal(token_map.labels.gather(1, first), torch.arange(token_map.sizes.shape[1]).expand_as(first))
    assert (first.sort(1).values == first).all()  # raster order
    bias = torch.randn(2, length, length)
    pairs = token_map.pair(bias)
    for b in range(batch):
        assert torch.equal(pairs[b], bias[:, first[b]][:, :, first[b]])
    keys = torch.randn(batch, 1, 1, length)
    assert torch.equal(token_map.pair(keys)[:, 0, 0], keys[:, 0, 0].gather(1, first))


@given(maps())
def test_a_token_alone_passes_through_bit_for_bit(token_map):
    x = torch.randn(*token_map.labels.shape, 5)
    weights = torch.randint(1, 9, token_map.labels.shape).float()
    step = TokenMap(token_map.labels, torch.zeros_like(token_map.sizes).scatter_add(1, token_map.labels, weights))
    alone = token_map.sizes.gather(1, token_map.labels) == 1
    assert torch.equal(step.unmerge(step.merge(x, weights))[alone], x[alone])


def test_half_precision_sums_large_groups_in_float32():
    token_map = TokenMap(torch.zeros(1, 3000, dtype=torch.long), torch.tensor([[3000.0]]))
    x = torch.full((1, 3000, 1), 1.5, dtype=torch.bfloat16)
    assert token_map.merge(x).item() == 1.5  # summed in bfloat16 it would stall at 512


def test_composition():
    first = TokenMap(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2.0, 1.0, 1.0]]))
    second = TokenMap(torch.tensor([[0, 1, 0]]), torch.tensor([[3.0, 1.0]]))
    both = first.then(second)
    assert both.labels.tolist() == [[0, 0, 1, 0]]
    x = torch.randn(1, 4, 2)
    torch.testing.assert_close(both.merge(x), second.merge(first.merge(x), first.sizes))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_any_trailing_dimensions(shape):
    token_map = TokenMap(torch.tensor([[0, 0, 1], [0, 1, 0]]), torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    x = torch.randn(shape)
    assert token_map.merge(x).shape == (2, 2, *shape[2:])
    assert token_map.unmerge(token_map.merge(x)).shape == shape


@pytest.mark.parametrize(
    ("labels", "sizes"),
    [
        (torch.zeros(3), torch.ones(1, 1)),
        (torch.zeros(2, 3).long(), torch.ones(1, 1)),
        (torch.zeros(1, 3), torch.ones(1, 1)),
    ],
)
def test_what_is_no_map_is_refused(labels, sizes):
    with pytest.raises(ValueError, match="TokenMap expects"):
        TokenMap(labels, sizes)


@pytest.mark.parametrize("verb", ["merge", "unmerge", "take", "pair"])
def test_wrong_lengths_are_named(verb):
    token_map = TokenMap(torch.tensor([[0, 0, 1]]), torch.tensor([[2.0, 1.0]]))
    with pytest.raises(ValueError, match=rf"TokenMap.{verb} expects .*got \[1, 7, 7\]"):
        getattr(token_map, verb)(torch.randn(1, 7, 7))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_not_averaged(dtype):
    token_map = TokenMap(torch.tensor([[0, 0, 1]]), torch.tensor([[2.0, 1.0]]))
    x = torch.tensor([[0, 1, 1]]).to(dtype)
    with pytest.raises(ValueError, match=r"cannot hold a mean.*x\.float\(\).*TokenMap\.take"):
        token_map.merge(x)
    assert token_map.merge(x.float()).tolist() == [[0.5, 1.0]]
    assert token_map.take(x).tolist() == [[0, 1]]
