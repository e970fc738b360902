"""Match tokens: pure functions from tokens to leaders.

A leader is the position of the first token of a group; a token that stands alone is its own leader.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from .compiling import exports
from .nearest import nearest

# TensorRT takes no more from a row at once.
LARGEST_TOPK = 3840


def window_similarity(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Return the mean cosine over the ordered pairs of different tokens in each window of the grid.

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
    unit = normalize(full_precision(x), dim=-1).unflatten(1, grid)
    unit = unit.narrow(1, 0, rows * high).narrow(2, 0, columns * wide)  # Core ML takes no [:] of everything
    # Strided slices: summing over two inner axes at once is 30 times slower on CPU.
    first, second, *others = [unit[:, row::high, column::wide] for row in range(high) for column in range(wide)]
    total = first + second
    for other in others:
        total += other
    size = high * wide
    return (total.square().sum(-1) - size) / (size * (size - 1))


def clap_leaders(merges: Tensor, grid: tuple[int, int], window: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Group the tokens of some windows, each window as one (conditional local average pooling).

    Args:
        merges: [B, h, w] bool, those that do.
        grid: (H, W), tokens.
        window: (height, width), tokens.
        num_prefix_tokens: P.

    Returns:
        [B, P + H*W] leaders.
    """
    batch, rows, columns = merges.shape
    high, wide = window
    position = torch.arange(num_prefix_tokens + grid[0] * grid[1], device=merges.device).expand(batch, -1)
    own = position.narrow(1, num_prefix_tokens, grid[0] * grid[1]).unflatten(1, grid)
    height, width = rows * high, columns * wide  # without the rows and columns left over
    windows = own.narrow(1, 0, height).narrow(2, 0, width).unflatten(1, (rows, high)).unflatten(3, (columns, wide))
    led = torch.where(merges[:, :, None, :, None], windows[:, :, :1, :, :1], windows)
    led = rearrange(led, "b h i w j -> b (h i) (w j)")
    leaders = torch.cat([torch.cat([led, own[:, :height, width:]], 2), own[:, height:]], 1)
    return torch.cat([position[:, :num_prefix_tokens], leaders.flatten(1)], 1)


def best_matches(
    x: Tensor, num_prefix_tokens: int, counts: Tensor | None = None, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Let every A token propose to its most similar B token (first half of global bipartite matching).

    A are the even positions of the sequence, B the odd ones, counted with the prefix, which takes no part.

    Args:
        x: [B, L, D] tokens, prefix first.
        num_prefix_tokens: P.
        counts: [B] tokens of each image, which has padding behind them. None: all are tokens.
        sizes: [B, L] of the tokens, if the distance is to count them (see `closeness`). None: they all weigh the same.

    Returns:
        similarity [B, a]: of each proposal, minus infinity if there is none (padding); proposer [a]: its
        position in the sequence; partner [B, a]: the position of the B token proposed to.
    """
    unit = normalize(full_precision(x), dim=-1)
    positions = torch.arange(x.shape[1], device=x.device)
    start, other = first_proposer(num_prefix_tokens), first_receiver(num_prefix_tokens)
    proposer, receiver = positions[start::2], positions[other::2]
    if x.shape[1] <= other:
        proposer = proposer[:0]
        return unit.new_zeros(x.shape[0], 0), proposer, proposer.expand(x.shape[0], 0)
    padding = None if counts is None else receiver >= counts[:, None]
    own, others = (None, None) if sizes is None else (sizes[:, start::2], sizes[:, other::2])
    similarity, index = nearest(unit[:, start::2], unit[:, other::2], own, others, padding)
    if counts is not None:
        similarity = similarity.masked_fill(proposer >= counts[:, None], -torch.inf)
    return similarity, proposer, other + 2 * index


def first_proposer(num_prefix_tokens: int) -> int:
    """Return the position of the first A token: even."""
    return num_prefix_tokens + num_prefix_tokens % 2


def first_receiver(num_prefix_tokens: int) -> int:
    """Return the position of the first B token: odd."""
    return num_prefix_tokens + 1 - num_prefix_tokens % 2


def num_proposals(length: int, num_prefix_tokens: int) -> int:
    """Return how many A tokens a sequence of this length has; none if there is no B token."""
    if length <= first_receiver(num_prefix_tokens):
        return 0
    return (length - first_proposer(num_prefix_tokens) + 1) // 2


def num_receivers(length: int, num_prefix_tokens: int) -> int:
    """Return how many B tokens a sequence of this length has."""
    return max(0, length - first_receiver(num_prefix_tokens) + 1) // 2


def gbm_leaders(merges: Tensor, proposer: Tensor, partner: Tensor, length: int) -> Tensor:
    """Group the tokens of the proposals that are carried out (second half of global bipartite matching).

    Args:
        merges: [B, a] bool, those that are.
        proposer, partner: [B, a] or [a], of `best_matches`.
        length: L, tokens in the sequence.

    Returns:
        [B, L] leaders.
    """
    batch = merges.shape[0]
    position = torch.arange(length, device=merges.device).expand(batch, length)
    group = position.scatter(1, proposer.expand(batch, -1), torch.where(merges, partner, proposer))
    return first_members(group, length).gather(1, group)


def first_members(groups: Tensor, count: int) -> Tensor:
    """Return the position of each group's first token: [B, count] int64. A group without tokens has the last position.

    Args:
        groups: [B, L] int64; the group, from 0 to ``count`` - 1, of each token.
    """
    batch, length = groups.shape
    # In float32, exact below 2^24 tokens: Apple GPUs scatter no minimum of int64, and of int32 only since macOS 15.
    position = torch.arange(length, device=groups.device, dtype=torch.float32).expand(batch, length)
    if exports():  # OpenVINO reads no scatter with a minimum from a program; attention holds as much
        member = groups[:, None] == torch.arange(count, device=groups.device)[:, None]
        return position[:, None].masked_fill(~member, length - 1).amin(2).long()
    start = position.new_full((batch, count), length - 1)
    return start.scatter_reduce_(1, groups, position, "amin").long()


def reaching(similarity: Tensor, tau: Tensor, same_number: bool) -> Tensor:
    """Return which candidates merge by threshold: [B, K] bool.

    Args:
        similarity: [B, K]; minus infinity, where there is nothing to merge, reaches no threshold.
        tau: [B] or []; NaN never reaches it.
        same_number: take the same number in every image (supplement §2 "Adaptive token merging"): the smallest count
            over the batch, and in each image its own most similar ones.
    """
    passes = similarity >= tau.reshape(-1, 1).clamp(min=torch.finfo(tau.dtype).min)
    if not same_number or passes.shape[0] <= 1:
        return passes
    order = similarity.masked_fill(~passes, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(similarity.shape[1], device=similarity.device) < passes.sum(1).amin(0)
    return torch.zeros_like(passes).scatter(1, order, chosen.expand_as(passes))


def most_similar(similarity: Tensor, count: int) -> Tensor:
    """Return which candidates of each image merge by rank, its ``count`` most similar: [B, K] bool.

    Of equal ones the first; NaN is as little as minus infinity.
    """
    similarity = similarity.masked_fill(similarity.isnan(), -torch.inf)
    if not count:
        return torch.zeros_like(similarity, dtype=torch.bool)
    least = count_th_largest(similarity, count)
    more, equal = similarity > least, similarity == least
    # In float32, exact below 2^24: TensorRT sums no int64.
    wanted = count - more.sum(1, keepdim=True, dtype=torch.float32)
    return more.logical_or(equal.logical_and(equal.cumsum(1, dtype=torch.float32) <= wanted))


def count_th_largest(values: Tensor, count: int) -> Tensor:
    """Return the ``count``-th largest of each row: [B, 1] of [B, K] without NaN, ``count`` from 1 to K."""
    while count > LARGEST_TOPK:
        values = values.scatter(1, values.topk(LARGEST_TOPK, 1).indices, -torch.inf)
        count -= LARGEST_TOPK
    return values.topk(count, 1).values[:, -1:]


def least_similarity(similarity: Tensor, merging: Tensor) -> Tensor:
    """Return [B]: the least similarity [B, K] among the candidates that merge; infinity if none does."""
    merged = torch.where(merging, similarity, torch.inf)
    return merged.amin(1) if merged.shape[1] else merged.sum(1) + torch.inf


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least: cosines near 1 differ by less than a bfloat16 can tell."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
