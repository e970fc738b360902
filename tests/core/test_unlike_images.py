"""clap and gbm merge each image of a batch as if it were alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core.matching import num_proposals
from algm_patch.core.plan import carried_out, one_by_one
from algm_patch.core.rule import Rule
from algm_patch.core.thresholds import Share
from algm_patch.functional import TokenMap, clap, gbm
from tests.support.batches import batches


def test_gradcheck_of_both_merges_of_unlike_images():
    torch.manual_seed(1)
    x = torch.randn(3, 16, 3, dtype=torch.float64)
    x[0, :8] += 10
    x.requires_grad_()

    def merge(x):
        once, token_map = clap(x, (4, 4), 0.7, num_prefix_tokens=0, batch="image")
        merged, token_map = gbm(once, token_map, layer=1, tau=0.9, num_prefix_tokens=0, batch="image")
        assert token_map.packing is not None
        return merged

    assert torch.autograd.gradcheck(merge, x)


def assert_images(merged, token_map, alone):
    """Assert that a batch's tokens and map are those of each image alone, and zero after its last token."""
    for i, (own_merged, own) in enumerate(alone):
        count = own_merged.shape[1]
        torch.testing.assert_close(merged[i : i + 1, :count], own_merged, equal_nan=True)
        assert torch.equal(token_map.labels[i], own.labels[0])
        assert torch.equal(token_map.sizes[i, :count], own.sizes[0])
        assert not merged[i, count:].any()
        assert not token_map.sizes[i, count:].any()
    assert merged.shape[1] == token_map.sizes.shape[1] == max(own.shape[1] for own, _ in alone)


@given(batches(), st.sampled_from([-1.0, 0.0, 0.5, 0.9, 1.0, 2.0, "auto"]), st.integers(1, 3), st.integers(2, 4))
def test_clap_of_anything(case, tau, high, wide):
    x, grid, prefix = case
    settings = {"window": (high, wide), "num_prefix_tokens": prefix, "batch": "image"}
    merged, token_map = clap(x, grid, tau, **settings)
    assert_images(merged, token_map, [clap(image[None], grid, tau, **settings) for image in x])


@given(batches(), st.sampled_from([-1.0, 0.5, 1.0, 2.0, "adaptive"]), st.integers(1, 40), st.integers(1, 2))
def test_gbm_of_anything(case, tau, layer, times):
    x, grid, prefix = case
    settings = {"num_prefix_tokens": prefix, "batch": "image"}
    merged, token_map = clap(x, grid, 0.5, **settings)
    alone = [clap(image[None], grid, 0.5, **settings) for image in x]
    for _ in range(times):
        if token_map.packing is not None:
            with pytest.raises(ValueError, match="gbm got images of different lengths"):
                gbm(merged, token_map, layer=layer, tau=tau, num_prefix_tokens=prefix)
        merged, token_map = gbm(merged, token_map, layer=layer, tau=tau, **settings)
        alone = [gbm(*one, layer=layer, tau=tau, **settings) for one in alone]
        assert_images(merged, token_map, alone)


@given(batches(), st.data())
def test_matching_all_images_at_once_is_matching_one_after_the_other(case, data):
    """Devices other than the CPU match all images at once."""
    x, _, prefix = case
    length = x.shape[1]
    counts = torch.tensor(data.draw(st.lists(st.integers(prefix + 1, length), min_size=len(x), max_size=len(x))))
    own = torch.arange(length) < counts[:, None]
    tau = data.draw(
        st.one_of(
            st.sampled_from([-1.0, 0.5, 0.9, "adaptive", Share(3, 10)]),
            st.lists(st.sampled_from([-0.5, 0.3, 2.0]), min_size=len(x), max_size=len(x)).map(torch.tensor),
        )
    )
    images = [image[None, :count] for image, count in zip(x, counts, strict=True)]
    rule = data.draw(st.builds(Rule, mutual=st.booleans(), size_aware=st.booleans()))
    sizes = torch.where(own, data.draw(st.sampled_from([1.0, torch.arange(length) % 4 + 1.0])), 0)
    at_once = carried_out(torch.where(own[..., None], x, 0), sizes, tau, 3, prefix, "image", rule, counts)
    one_after_the_other = one_by_one(images, sizes, tau, 3, prefix, rule)
    for found, expected, count in zip(at_once[0], one_after_the_other[0], counts, strict=True):
        proposed = int(count) - prefix if rule.mutual else num_proposals(int(count), prefix)
        torch.testing.assert_close(found[:proposed], expected[:proposed], equal_nan=True)
        assert (found[proposed:] == -torch.inf).all()
        assert (expected[proposed:] == -torch.inf).all()
    found, expected = (
        TokenMap.from_leaders(leaders, own.float(), packed=True) for *_, leaders in (at_once, one_after_the_other)
    )
    assert torch.equal(found.labels[own], expected.labels[own])
    assert torch.equal(found.sizes, expected.sizes)
