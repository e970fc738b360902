"""The automatic rules for thresholds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core.thresholds import LEAST_SIMILAR, adaptive_tau, auto_tau, gbm_tau, paper_tau

SIMILARITIES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=300)


@given(SIMILARITIES)
def test_auto_stays_inside_and_always_merges_something(values):
    """Merge a tenth of the windows that are alike; of others the best one."""
    similarity = torch.tensor([values])
    tau = auto_tau(similarity)
    assert -1 < tau.item() < 1
    if similarity.max() > -0.99999:  # opposite tokens never merge
        assert (similarity >= tau).any()
    alike = similarity >= LEAST_SIMILAR
    if alike.float().mean() >= 0.1:
        assert (similarity >= tau).float().mean() >= 0.1
    if alike.any():
        assert alike[similarity >= tau].all()


def test_auto_is_fishers_z_where_enough_windows_pass():
    similarity = torch.tanh(torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) + 1)
    z = similarity.atanh()
    torch.testing.assert_close(auto_tau(similarity), torch.tanh(z.mean(1) + z.std(1)))


def test_auto_is_each_images_own():
    similarity = torch.rand(4, 100)
    alone = torch.cat([auto_tau(image[None]) for image in similarity])
    assert torch.equal(auto_tau(similarity), alone)


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_constant_image_merges_everything(count):
    for value in (1.0, 1.0000001, 0.9999999, 0.3):
        similarity = torch.full((1, count), value)
        assert (similarity >= auto_tau(similarity)).all()


def test_texture_all_over_stays_as_it_is():
    """No windows are alike, and no proposals: one window merges, and no proposal."""
    similarity = torch.rand(1, 256) * 0.8
    assert (similarity >= auto_tau(similarity)).sum() == 1
    assert not (similarity.clamp(max=0.7) >= gbm_tau(similarity.clamp(max=0.7), "auto", 5)).any()
    assert (similarity >= gbm_tau(similarity, "adaptive", 5)).any()


def test_the_published_rule_can_leave_the_range():
    assert paper_tau(torch.tensor([[1.0] * 9 + [-1.0]])).item() > 1


def test_adaptive_is_the_rule_of_each_image():
    best = torch.rand(3, 50)
    each = [image.mean() + image.std() / 5 for image in best]
    torch.testing.assert_close(adaptive_tau(best, 5), torch.stack(each))
