"""Gradients of merging and unmerging."""

import pytest
import torch

from algm_patch.core.matching import best_matches, window_similarity
from algm_patch.functional import TokenMap, clap, gbm


def test_gradcheck_of_a_merge_and_its_way_back():
    token_map = TokenMap(torch.tensor([[0, 1, 0, 2, 0]]), torch.tensor([[5.0, 1.0, 1.0]], dtype=torch.float64))
    sizes = torch.tensor([[1.0, 1.0, 3.0, 1.0, 1.0]], dtype=torch.float64)
    x = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_map.unmerge(token_map.merge(x, sizes)), x)
    assert torch.autograd.gradcheck(lambda x: gbm(x, TokenMap.identity(1, 5), layer=1, tau=0.0)[0], x)


@pytest.mark.parametrize("batch", ["min", "image"])
def test_gradcheck_of_both_merges_and_their_way_back(batch):
    alike = torch.tensor([[13], [6]]) > torch.arange(13)  # both windows of the first image, one of the second
    x = (torch.randn(2, 13, 3, dtype=torch.float64) + 5 * alike[..., None]).requires_grad_()

    def merged(x):
        once, windows = clap(x, (4, 3), 0.8, batch=batch)
        return once, windows, *gbm(once, windows, layer=2, tau=0.5, batch=batch)

    _, windows, _, token_map = merged(x)
    assert (windows.packing is not None) == (token_map.packing is not None) == (batch == "image")
    assert token_map.sizes.shape[1] < windows.sizes.shape[1] < 13
    assert torch.autograd.gradcheck(lambda x: merged(x)[::2], x)
    assert torch.autograd.gradcheck(lambda x: token_map.unmerge(merged(x)[2]), x)


TIES = {
    "identical": lambda: torch.ones(2, 13, 4),
    "zero": lambda: torch.zeros(2, 13, 4),
    "one image identical, one not": lambda: torch.cat([torch.ones(1, 13, 4), torch.randn(1, 13, 4)]),
    "no two alike": lambda: torch.randn(2, 13, 4),
}


@pytest.mark.parametrize("tokens", TIES.values(), ids=TIES)
@pytest.mark.parametrize("tau", [-1.0, "auto", 1.0, 2.0])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_merged_and_unmerged_every_token_counts_once(tokens, tau, batch):
    """The copies of a group sum to its members, so the gradient of the sum is one. This holds at ties too."""
    x = tokens().requires_grad_()
    once, windows = clap(x, (4, 3), tau, batch=batch)
    twice, token_map = gbm(once, windows, layer=2, tau="adaptive" if tau == "auto" else tau, batch=batch)
    (gradient,) = torch.autograd.grad(token_map.unmerge(twice).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
    assert windows.sizes.shape[1] < 13 or tau not in (-1.0, "auto")
    assert token_map.sizes.shape[1] == 13 or tau != 2.0


def test_what_is_just_as_similar_as_the_threshold_merges():
    x = torch.randn(1, 13, 4, requires_grad=True)
    windows = window_similarity(x.detach()[:, 1:], (4, 3), (2, 2)).flatten()
    merged, token_map = clap(x, (4, 3), windows.sort().values[1].item())
    assert merged.shape[1] == 10
    (gradient,) = torch.autograd.grad(token_map.unmerge(merged).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
    proposals = best_matches(x.detach(), 1)[0].flatten().sort(descending=True).values
    merged, token_map = gbm(x, TokenMap.identity(1, 13), layer=1, tau=proposals[2].item())
    assert merged.shape[1] == 10
    (gradient,) = torch.autograd.grad(token_map.unmerge(merged).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
