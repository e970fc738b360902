"""The threshold that a share of all values reaches, in whole numbers."""

import pytest
import torch

from algm_patch.core.thresholds import Share, reached_by


@pytest.mark.parametrize("count", [*range(1, 130), 1369, 4096])
def test_a_share_is_exact(count):
    """The threshold is the largest number that at least this share of the values reaches."""
    values = torch.randperm(count).float()[None]
    for parts, of in [(1, 10), *((n, 20) for n in range(20))]:
        reached = int((values >= reached_by(values, parts, of)).sum())
        assert reached == 1 + min(count * parts // of, count - 1)
        padded = torch.cat([values, values.new_full((1, 7), -torch.inf)], 1)
        assert torch.equal(Share(parts, of)(padded), reached_by(values, parts, of))
