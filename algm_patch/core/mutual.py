"""Match tokens with each other over the whole image: those that are each other's nearest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from .closeness import closeness
from .matching import full_precision
from .nearest import nearest

# The width to which vectors are folded before all are compared with all.
FOLDED = 64
# Similarities closer than this are rounding: among equals a token takes its neighbour in the sequence.
ROUNDING = 1e-6


def mutual_matches(
    x: Tensor, num_prefix_tokens: int, counts: Tensor | None = None, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Match each patch token with its most similar one; those that are each other's best are a pair.

    Unlike bipartite matching it sees every pair, for four times the products of vectors of the same width; so these
    are folded first.

    Args:
        x: [B, L, D] tokens, or what is compared in their place, prefix first.
        num_prefix_tokens: P; they take no part.
        counts: [B] tokens of each image, which has padding behind them. None: all are tokens.
        sizes: [B, L] of the tokens, if the distance is to count them (see `closeness`). None: they all weigh the same.

    Returns:
        similarity [B, L-P] of each pair, at its first token; minus infinity for all others. Proposer [L-P]: the
        position of each patch token in the sequence; partner [B, L-P]: the position of the second token of its pair.
    """
    unit = normalize(folded(full_precision(x[:, num_prefix_tokens:])), dim=-1)
    sizes = None if sizes is None else sizes[:, num_prefix_tokens:]
    own = torch.arange(unit.shape[1], device=x.device)
    if not torch.compiler.is_compiling() and unit.shape[1] < 2:
        return unit.new_full(unit.shape[:2], -torch.inf), own + num_prefix_tokens, own.expand(unit.shape[:2])
    no_token = None if counts is None else own >= counts[:, None] - num_prefix_tokens
    best, partner = nearest(unit, unit, sizes, sizes, no_token, not_itself=True)
    best, partner = preferring_neighbours(best, partner, unit, sizes, no_token)
    pairs = (partner.gather(1, partner) == own) & (own < partner)
    if no_token is not None:
        pairs = pairs & ~no_token
    return best.masked_fill(~pairs, -torch.inf), own + num_prefix_tokens, partner + num_prefix_tokens


def folded(x: Tensor) -> Tensor:
    """Return vectors [..., D] as [..., 64], each number the sum of every 64th; narrower ones as they are.

    For keys of heads that are 64 wide this is, but for a factor, their mean over the heads, as in Token Merging.
    """
    if x.shape[-1] <= FOLDED:
        return x
    return pad(x, (0, -x.shape[-1] % FOLDED)).unflatten(-1, (-1, FOLDED)).sum(-2)


def preferring_neighbours(
    best: Tensor, partner: Tensor, unit: Tensor, sizes: Tensor | None, no_token: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the same matches, but a token's neighbour in the sequence wherever no other is more similar.

    Neighbours are the first and second token, the third and fourth, and so on. In a flat area, where all tokens are
    equal, they pair up; else all would choose the first of them, and one pair would merge.
    """
    own = torch.arange(unit.shape[1], device=unit.device)
    beside = (own ^ 1).clamp(max=unit.shape[1] - 1)  # the last of an odd number is its own
    similarity = (unit * unit[:, beside]).sum(-1)
    if sizes is not None:
        similarity = closeness(similarity, sizes, sizes[:, beside])
    takes = (similarity >= best - ROUNDING) & (beside != own)
    if no_token is not None:
        takes = takes & ~no_token[:, beside]
    return torch.where(takes, similarity, best), torch.where(takes, beside, partner)
