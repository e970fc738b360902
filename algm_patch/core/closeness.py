"""Weigh the distance of tokens by how many tokens each of them holds already."""

from __future__ import annotations

from torch import Tensor


def closeness(cosine: Tensor, sizes: Tensor | None, other_sizes: Tensor | None) -> Tensor:
    """Return cosines such that tokens that hold many others are further from each other: at most 1, as a cosine.

    The loss of a merge grows with the sizes a and b of the two as Ward's criterion has it (*Hierarchical Grouping to
    Optimize an Objective Function*, 1963): distances are multiplied by the root of their harmonic mean,
    ``1 - (1 - cosine) * sqrt(2 a b / (a + b))``. Tokens that hold one each keep their cosine.

    Args:
        cosine: of pairs; it is overwritten.
        sizes, other_sizes: of the two of each pair, broadcastable to ``cosine``. None: all hold one.
    """
    if sizes is None or other_sizes is None:
        return cosine
    # In place: of all pairs of an image these are the largest tensors that a merge holds.
    harmonic = (1 / sizes + 1 / other_sizes).reciprocal_().mul_(2)
    return cosine.sub_(1).mul_(harmonic.sqrt_()).add_(1)
