"""Tell several views, frames or crops in one sequence from tokens that join the prefix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from ..core.packing import Packing
from ..core.token_map import TokenMap
from .block_pass import BlockPass, Regroup


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


def rows_of(views: TokenMap | None, x: Tensor, lost: Tensor | None) -> TokenMap | None:
    """Return the map of each sequence as a whole, of the map of each view; None if it is not known to fit the tokens.

    It fits if the copies that each group has there are equal, but for what their tokens had lost: a sequence then holds
    one view after the other, or might.

    Args:
        x: [B, V * L, D], the full grids, with the prefix of each view.
        lost: by its original tokens, and added to them; None: nothing.
    """
    if views is None or torch.compiler.is_compiling():
        return None
    batch, length = views.labels.shape
    if x.shape[0] * x.shape[1] != batch * length:
        return None
    each = x.detach().reshape(batch, length, x.shape[2])
    if not are_copies(views, each, lost):
        return None
    counts = (views.sizes > 0).sum(1).view(x.shape[0], -1)
    starts = counts.cumsum(1) - counts
    labels = (views.labels.view(*counts.shape, length) + starts[..., None]).flatten(1)
    packing = Packing.read(counts.sum(1))
    sizes = packing.unpack(views.pack(views.sizes).reshape(1, -1))
    return TokenMap(labels, sizes, None if packing.even else packing)


def are_copies(views: TokenMap, x: Tensor, lost: Tensor | None) -> bool:
    """Return whether the tokens [B, L, D] of each group are equal; to rounding, without what was lost."""
    if lost is None:
        return torch.equal(views.unmerge(views.take(x)), x)
    copies = x - lost.view(x.shape)
    rounding = 4 * torch.finfo(x.dtype).eps * x.abs().amax()
    return bool((copies - views.unmerge(views.take(copies))).abs().amax() <= rounding)


def block_of_views(
    x: Tensor, grid: tuple[int, int], views: int, last: bool, tokens: LayerTokens, restores: bool
) -> BlockPass:
    """Return the part of a block that is given several views in each sequence.

    Args:
        x: [B, L, D].
        tokens: merged, if their order is known; else the block runs as ever, on the full grids.
        restores: of the forward pass.
    """
    rows, prefix = tokens.token_map, max(0, x.shape[1] // views - grid[0] * grid[1])  # of each
    regroup: Regroup = "none" if rows is None else "part" if restores else "take"
    return BlockPass(rows, rows, regroup, True, False, last, prefix, [], tokens, idle=rows is None, views=views)
