"""Test what is kept: classes by an oracle, the bound by simulated images, what a user may ask for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.tuning.areas import areas_of, pooled
from algm_patch.tuning.judges import CLASS_LOGITS, CLASS_MAPS, CORRELATION, COSINE
from algm_patch.tuning.keeping import kept_and_bound, wanted

maps = st.lists(st.lists(st.sampled_from([-1, 0, 3, 255, 10**6]), min_size=6, max_size=6), min_size=2, max_size=2)


@given(st.lists(maps, min_size=1, max_size=4))
def test_classes_are_the_mean_over_all_that_occur_anywhere(images):
    pairs = torch.tensor(images)  # [N, 2, 6]
    found, _ = kept_and_bound(CLASS_MAPS, [CLASS_MAPS.compare(*pair) for pair in pairs], bounded=False)
    one, other = pairs.unbind(1)
    ious = [
        ((one == c) & (other == c)).sum() / ((one == c) | (other == c)).sum() for c in pairs.unique()
    ]  # over all images at once
    assert found["classes"] == pytest.approx(torch.stack(ious).mean().item())
    assert found["pixels"] == pytest.approx((one == other).double().mean().item())


def test_areas_do_not_grow_with_the_number_of_classes():
    classes = torch.randint(10**9, (2, 64))
    table = pooled([areas_of(classes, classes.roll(1))] * 3)
    assert table.shape == (3, 3, len(classes.unique()))


def test_unseen_images_keep_more_than_the_bound():
    """At least 90 % of 200 samples of 24 images have a bound below what all images keep, and not all by far."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4800, generator=generator)  # images differ in how many of their pixels change
    after = (torch.rand(4800, 1, 100, generator=generator) < 0.3 * noise[:, None, None] ** 2).long()
    compared = [CLASS_MAPS.compare(torch.zeros_like(image), image) for image in after]
    everywhere, _ = kept_and_bound(CLASS_MAPS, compared, bounded=False)
    bounds = [kept_and_bound(CLASS_MAPS, compared[i : i + 24], bounded=True)[1] for i in range(0, 4800, 24)]
    for name in ("pixels", "classes"):
        covered = sum(low[name] <= everywhere[name] for low in bounds) / len(bounds)
        assert 0.9 <= covered < 1


@pytest.mark.parametrize("judge", [CLASS_LOGITS, CORRELATION, COSINE])
def test_divergence_grows_with_the_error_and_is_zero_without(judge):
    answer = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = [judge.diverge(*map(judge.sample, (answer, answer + scale * answer.flip(1)))) for scale in (0, 0.1, 0.3)]
    assert errors[0] == pytest.approx(0, abs=1e-6)
    assert 1e-4 < errors[1] < errors[2]


def test_divergence_of_classes_is_that_of_their_distributions():
    before, after = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    one, other = before.softmax(1), after.softmax(1)
    expected = (one * (one / other).log()).sum(1).mean().item()
    assert CLASS_LOGITS.diverge(CLASS_LOGITS.sample(before), CLASS_LOGITS.sample(after)) == pytest.approx(expected)


def test_a_number_is_meant_for_the_first_name():
    assert wanted(0.9, ("pixels", "classes")) == {"pixels": 0.9}
    assert wanted({"classes": 0.8}, ("pixels", "classes")) == {"classes": 0.8}
    with pytest.raises(ValueError, match="keep asks for 'classes', but what is kept here is 'correlation'"):
        wanted({"classes": 0.8}, CORRELATION.names)
