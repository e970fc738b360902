"""Lay numbers out in memory as fast kernels take them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

# Rows are to begin at multiples of so many numbers: 32 bytes in half precision.
ALIGNED = 16


def in_aligned_rows(bias: Tensor) -> Tensor:
    """Return the same bias [..., L] of attention, whose rows begin at multiples of 16 numbers.

    On a Hopper GPU, attention with a bias of other rows takes up to twice as long ("bias" against "bias, aligned" in
    the table of attention kernels that ``python -m benchmarks.gpu.suite`` prints).
    """
    length = bias.shape[-1]
    return pad(bias, (0, -length % ALIGNED))[..., :length]
