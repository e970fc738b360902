"""The layout of numbers in memory."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.core.alignment import ALIGNED, in_aligned_rows


@given(st.integers(1, 70), st.integers(1, 3))
def test_rows_are_the_same_and_begin_at_multiples(length, batch):
    bias = torch.randn(batch, 1, 1, length)
    found = in_aligned_rows(bias)
    assert torch.equal(found, bias)
    assert all(row.storage_offset() % ALIGNED == 0 for row in found)
