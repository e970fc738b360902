"""The automatic rules for thresholds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core.thresholds import adaptive_tau, auto_tau, paper_tau

SIMILARITIES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=300)


@given(SIMILARITIES)
def test_auto_stays_inside_and_always_merges_a_tenth(values):
    similarity = torch.tensor([values])
    tau = auto_tau(similarity)
    assert -1 < tau.item() < 1
    if similarity.max() > -0.99999:  # opposite tokens never merge
        assert (similarity >= tau).float().mean() >= 0.1


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


def test_the_published_rule_can_leave_the_range():
    assert paper_tau(torch.tensor([[1.0] * 9 + [-1.0]])).item() > 1


def test_adaptive_is_the_rule_of_each_image():
    best = torch.rand(3, 50)
    each = [image.mean() + image.std() / 5 for image in best]
    torch.testing.assert_close(adaptive_tau(best, 5), torch.stack(each))
