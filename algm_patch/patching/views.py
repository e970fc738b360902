"""Tell several views, frames or crops in one sequence from tokens that join the prefix."""

from __future__ import annotations

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .block_pass import BlockPass


def views_in(x: Tensor, grid: tuple[int, int], length: int, grids: int, newest: int) -> int:
    """Return how many grids each sequence holds that a block is given; 1 if what is more than one grid is prefix.

    Args:
        x: [B, L, D].
        length: of one grid, with the prefix so far.
        grids: how many there are in the sequences, or in others that no block was given.
        newest: how many of them came last: with the newest call of the patch projection, or to the block before.
    """
    if x.dim() != 3 or x.shape[1] <= length or grids <= x.shape[0]:
        return 1
    if newest <= x.shape[0] and x.shape[1] - length < grid[0] * grid[1]:
        return 1  # nothing came of the others
    return max(2, grids // max(1, x.shape[0]))


def block_of_views(x: Tensor, grid: tuple[int, int], views: int, last: bool) -> BlockPass:
    """Return the part of a block that is given several views in each sequence: it runs as ever, on the full grids.

    Where one view ends in a sequence, and in which order its patches stand there, is not known.
    """
    prefix = max(0, x.shape[1] // views - grid[0] * grid[1])  # of each
    tokens = LayerTokens(None, None, prefix)
    return BlockPass(None, None, "none", True, False, last, prefix, [], tokens, idle=True, views=views)
