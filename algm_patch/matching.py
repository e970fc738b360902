"""Which tokens merge: pure functions from tokens to leaders.

A leader is the position of the first token of a group; a token that stands alone is its own leader.
In a batch every image merges the same number (the authors' ``min`` way, supplement §2 "Adaptive token merging").
"""

from __future__ import annotations

from functools import reduce

import torch
from einops import repeat
from torch import Tensor
from torch.nn.functional import normalize

# Bound on the similarities that best_matches holds at once.
CHUNK_BYTES = 64 * 2**20


def window_similarity(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Mean cosine over the ordered pairs of different tokens in each window of the grid.

    One pass: with unit vectors u, ``(|sum u|^2 - k) / (k (k - 1))`` for k tokens a window (paper Eq. of CLAP).

    Args:
        x: [B, H*W, D] patch tokens in raster order.
        grid: (H, W).
        window: (height, width) in tokens. Rows and columns left over are ignored.

    Returns:
        [B, H // height, W // width], float32 (float64 for float64 tokens).
    """
    high, wide = window
    rows, columns = grid[0] // high, grid[1] // wide
    unit = normalize(full_precision(x), dim=-1).unflatten(1, grid)[:, : rows * high, : columns * wide]
    # Strided slices: summing over two inner axes at once is 30 times slower on CPU.
    total = reduce(torch.add, (unit[:, i::high, j::wide] for i in range(high) for j in range(wide)))
    size = high * wide
    return (total.square().sum(-1) - size) / (size * (size - 1))


def clap_leaders(
    similarity: Tensor, tau: Tensor, grid: tuple[int, int], window: tuple[int, int], num_prefix_tokens: int
) -> Tensor:
    """Conditional local average pooling: windows at least ``tau`` similar become one group.

    Args:
        similarity: [B, h, w] of the windows.
        tau: [B] or [] threshold.
        grid: (H, W), tokens.
        window: (height, width), tokens.
        num_prefix_tokens: P.

    Returns:
        [B, P + H*W] leaders.
    """
    batch, rows, columns = similarity.shape
    merges = most_similar(similarity.flatten(1), tau).view(batch, rows, columns)
    high, wide = window
    # True for every token of a window that merges; the leftover rows and columns stay False.
    merging = merges.new_zeros(batch, *grid)
    merging[:, : rows * high, : columns * wide] = repeat(merges, "b h w -> b (h i) (w j)", i=high, j=wide)
    row, column = (torch.arange(n, device=similarity.device) for n in grid)
    own = row[:, None] * grid[1] + column
    corner = (row - row % high)[:, None] * grid[1] + (column - column % wide)
    leaders = torch.where(merging, corner, own).flatten(1) + num_prefix_tokens
    prefix = torch.arange(num_prefix_tokens, device=leaders.device).expand(batch, -1)
    return torch.cat([prefix, leaders], 1)


def best_matches(x: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Global bipartite matching, first half: every A token proposes to its most similar B token.

    A are the even positions of the sequence, B the odd ones, counted with the prefix, which takes no part.

    Args:
        x: [B, L, D] tokens, prefix first.
        num_prefix_tokens: P.

    Returns:
        similarity [B, a]: cosine of each proposal; proposer [a]: its position in the sequence;
        partner [B, a]: the position of the B token proposed to.
    """
    unit = normalize(full_precision(x), dim=-1)
    positions = torch.arange(x.shape[1], device=x.device)
    start = num_prefix_tokens + num_prefix_tokens % 2
    other = num_prefix_tokens + 1 - num_prefix_tokens % 2
    proposer, receiver = positions[start::2], positions[other::2]
    if not len(receiver):
        proposer = proposer[:0]
        return unit.new_zeros(len(x), 0), proposer, proposer.expand(len(x), 0)
    a, b = unit[:, start::2], unit[:, other::2].mT.contiguous()
    rows = max(1, CHUNK_BYTES // (len(x) * len(receiver) * unit.element_size()))
    best = [(chunk @ b).max(-1) for chunk in a.split(rows, 1)]
    similarity, index = (torch.cat(part, 1) for part in zip(*best, strict=True))
    return similarity, proposer, receiver[index]


def gbm_leaders(similarity: Tensor, proposer: Tensor, partner: Tensor, tau: Tensor, length: int) -> Tensor:
    """Global bipartite matching, second half: proposals at least ``tau`` similar are carried out.

    Args:
        similarity, proposer, partner: of :func:`best_matches`.
        tau: [B] or [] threshold.
        length: L, tokens in the sequence.

    Returns:
        [B, L] leaders.
    """
    batch = len(similarity)
    merges = most_similar(similarity, tau)
    position = torch.arange(length, device=similarity.device).expand(batch, length)
    group = position.scatter(1, proposer.expand(batch, -1), torch.where(merges, partner, proposer))
    first = position.scatter_reduce(1, group, position, "amin")
    return first.gather(1, group)


def most_similar(similarity: Tensor, tau: Tensor) -> Tensor:
    """Which candidates merge: those that pass the threshold, the same number in every image.

    That number is the smallest count over the batch; each image takes its own most similar candidates.
    NaN never passes.

    Args:
        similarity: [B, K].
        tau: [B] or [].

    Returns:
        [B, K] bool.
    """
    passes = similarity >= tau.reshape(-1, 1)
    if len(similarity) == 1:
        return passes
    count = passes.sum(1).amin(0)
    order = similarity.masked_fill(~passes, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(similarity.shape[1], device=similarity.device) < count
    return torch.zeros_like(passes).scatter(1, order, chosen.expand_as(passes))


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 at least: cosines near 1 differ by less than a bfloat16 can tell."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
