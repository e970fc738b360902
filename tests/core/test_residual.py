"""Keep what original tokens lose at merges, and bring it back."""

import pytest
import torch

from algm_patch.core.plan import plan_clap, plan_gbm
from algm_patch.core.residual import lost_with, parted, restored
from tests.support.batches import unlike

GRID, PREFIX = (6, 5), 2


def tokens(dtype, kind):
    """Return tokens [B, P+N, 3], B images that merge much, little, and in one half."""
    patches = torch.nn.functional.adaptive_avg_pool2d(unlike(torch.zeros(1, 3, 60, 50)), GRID).flatten(2).mT
    if kind == "constant":
        patches = torch.ones_like(patches)
    return torch.cat([torch.randn(len(patches), PREFIX, 3, generator=torch.Generator().manual_seed(0)), patches], 1).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how_many", ["image", "min"])
@pytest.mark.parametrize("kind", ["unlike", "constant"])
def test_copies_and_what_was_lost_are_the_original_tokens(dtype, how_many, kind):
    """Nothing runs between these merges, so nothing is lost for good; images of other lengths are packed."""
    x = original = tokens(dtype, kind)
    token_map, lost = None, None
    for layer in range(3):
        if token_map is None:
            plan = plan_clap(x, GRID, 0.9, (2, 2), PREFIX, how_many)
        else:
            plan = plan_gbm(x, token_map.sizes, 0.8, layer + 1, PREFIX, how_many, token_map.packing)
        merged = plan(x)
        lost = lost_with(plan, token_map, x, merged, lost)
        x, token_map = merged, plan.step if token_map is None else token_map.then(plan.step)
    assert token_map is not None
    assert lost is not None
    assert token_map.sizes.shape[1] < original.shape[1]
    assert (token_map.packing is None) == (how_many == "min" or kind == "constant")
    assert lost.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rounding = 20 * torch.finfo(dtype).eps
    full = restored(token_map.unmerge(token_map.unpack(x)), lost)
    assert full.dtype == dtype
    torch.testing.assert_close(full, original, atol=rounding, rtol=rounding)
    assert token_map.merge(lost).abs().max() <= rounding
    alone = token_map.unmerge(token_map.sizes) == 1
    assert alone[:, :PREFIX].all()
    assert not lost[alone].any()
    assert torch.equal(full[alone], original[alone])
    means, beside = parted(token_map, full)
    torch.testing.assert_close(token_map.pack(means), x, atol=rounding, rtol=rounding)
    torch.testing.assert_close(beside, lost, atol=rounding, rtol=rounding)
    assert torch.equal(token_map.unmerge(means)[alone], original[alone])
