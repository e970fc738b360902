"""Images of different lengths in one row of tokens: there and back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core.packing import Packing
from algm_patch.functional import TokenMap

COUNTS = st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda counts: len(set(counts)) > 1)


@given(COUNTS, st.lists(st.integers(1, 3), max_size=2), st.integers(0, 3))
def test_packing_there_and_back(counts, shape, more):
    packing = Packing.read(torch.tensor(counts))
    assert (packing.longest, packing.total) == (max(counts), sum(counts))
    packed = torch.randn(1, sum(counts), *shape)
    padded = packing.unpack(packed)
    assert padded.shape == (len(counts), max(counts), *shape)
    assert torch.equal(packing.pack(padded), packed)
    start = 0
    for count, row, part in zip(counts, padded, packing.split(packed), strict=True):
        assert torch.equal(row[:count], packed[0, start : start + count])
        assert torch.equal(part, packed[:, start : start + count])
        assert not row[count:].any()
        start += count
    for count, row, padding in zip(counts, packing.spread(packed), packing.padding, strict=True):
        assert torch.equal(row[padding], row[count - 1].expand_as(row[padding]))
    own = packing.spread(packed).masked_fill(packing.padding.reshape(*padded.shape[:2], *[1] * len(shape)), 0)
    assert torch.equal(own, padded)  # how a GPU unpacks
    wider = packing.widened(more)
    expected = Packing.read(torch.tensor(counts) + more)
    assert torch.equal(wider.index, expected.index)
    assert torch.equal(wider.counts, expected.counts)
    assert (wider.longest, wider.total) == (expected.longest, expected.total)
    assert torch.equal(wider.widened(-more).index, packing.index)
    for row, count in zip(padded, counts, strict=True):
        row[count:] = torch.nan
    assert torch.equal(packing.pack(padded), packed)  # whatever stands in the padding


@given(st.integers(1, 9), st.integers(1, 5))
def test_images_of_one_length_are_not_packed(count, batch):
    assert Packing.read(torch.full((batch,), count)).even


@st.composite
def maps(draw):
    """Draw the map of a few images, from one length to different lengths, and the map of each image."""
    batch, length = draw(st.integers(2, 4)), draw(st.integers(2, 12))
    seeds = [draw(st.lists(st.integers(0, length - 1), min_size=length, max_size=length)) for _ in range(batch)]
    leaders = torch.tensor([[min(i for i, other in enumerate(row) if other == own) for own in row] for row in seeds])
    ones = torch.ones(batch, length)
    together = TokenMap.from_leaders(leaders, ones, packed=True)
    return together, [TokenMap.from_leaders(leaders[i : i + 1], ones[:1]) for i in range(batch)]


@given(maps(), st.integers(0, 2))
def test_a_map_of_unlike_images_is_the_maps_of_each(case, prefix):
    together, alone = case
    together, alone = together.with_prefix(prefix), [own.with_prefix(prefix) for own in alone]
    batch, length = together.labels.shape
    x, pairs = torch.randn(batch, length, 3), torch.randn(batch, 2, length, length)
    merged, taken = together.merge(x), together.take(x)
    packed = together.pack(merged)
    assert torch.equal(together.unpack(packed), merged)
    assert together.shape == packed.shape[:2]
    shorter = together.without_prefix(prefix)
    start = 0
    for i, own in enumerate(alone):
        count = own.sizes.shape[1]
        torch.testing.assert_close(merged[i, :count], own.merge(x[i : i + 1])[0])
        assert not merged[i, count:].any()
        assert torch.equal(taken[i, :count], own.take(x[i : i + 1])[0])
        assert torch.equal(together.unmerge(taken)[i], own.unmerge(own.take(x[i : i + 1]))[0])
        assert torch.equal(together.pair(pairs)[i, :, :count, :count], own.pair(pairs[i : i + 1])[0])
        assert torch.equal(together.key_bias[i, ..., :count], own.key_bias[0])
        assert (together.key_bias[i, ..., count:] == -torch.inf).all()
        assert torch.equal(together.of_image(i).sizes, own.sizes)
        assert torch.equal(together.of_image(i).labels, own.labels)
        assert torch.equal(shorter.of_image(i).labels, own.without_prefix(prefix).labels)
        assert torch.equal(shorter.of_image(i).sizes, own.without_prefix(prefix).sizes)
        if together.packing is not None:
            torch.testing.assert_close(packed[0, start : start + count], own.merge(x[i : i + 1])[0])
        start += count
