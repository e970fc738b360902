"""Find for each token the most similar one of others, some rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .closeness import closeness
from .compiling import ONE_GRAPH, exports

# The bound on the similarities that are held at once; weights of pairs take as much again.
CHUNK_BYTES = 64 * 2**20


def nearest(
    x: Tensor,
    others: Tensor,
    sizes: Tensor | None = None,
    sizes_of_others: Tensor | None = None,
    no_token: Tensor | None = None,
    not_itself: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the similarity of each vector to the most similar other one, and which that is: [B, n] each.

    A compiler calls it without looking into it, as its graph would hold all similarities at once. What is exported
    has torch's own operators alone, and holds them all.

    Args:
        x: [B, n, D] of length one.
        others: [B, m, D] of length one.
        sizes, sizes_of_others: [B, n] and [B, m], if the distance is to count them (see `closeness`). None: not.
        no_token: [B, m], where the others are padding. None: nowhere.
        not_itself: the others are the same vectors, and none is its own nearest.
    """
    if torch.compiler.is_dynamo_compiling() and ONE_GRAPH and not exports():
        return opaque(x, others, sizes, sizes_of_others, no_token, not_itself)
    columns = others.mT.contiguous()
    positions = torch.arange(x.shape[1], device=x.device) if not_itself else None

    def best(x: Tensor, sizes: Tensor | None, own: Tensor | None) -> tuple[Tensor, Tensor]:
        similarity = x @ columns
        if sizes is not None and sizes_of_others is not None:
            similarity = closeness(similarity, sizes[..., None], sizes_of_others[:, None])
        if own is not None and positions is not None:
            similarity = similarity.masked_fill_(own[:, None] == positions, -torch.inf)
        return (similarity if no_token is None else similarity.masked_fill_(no_token[:, None], -torch.inf)).max(-1)

    rows = max(1, CHUNK_BYTES // max(1, x.shape[0] * others.shape[1] * x.element_size()))
    if torch.compiler.is_compiling() or x.shape[1] <= rows:
        return best(x, sizes, positions)  # and not a slice of all rows, which Core ML does not take
    found = []
    for start in range(0, x.shape[1], rows):
        here = slice(start, start + rows)
        own = None if positions is None else positions[here]
        found.append(best(x[:, here], None if sizes is None else sizes[:, here], own))
    similarity, index = zip(*found, strict=True)
    return torch.cat(similarity, 1), torch.cat(index, 1)


@torch.library.custom_op("algm_patch::nearest", mutates_args=())
def opaque(
    x: Tensor,
    others: Tensor,
    sizes: Tensor | None,
    sizes_of_others: Tensor | None,
    no_token: Tensor | None,
    not_itself: bool,
) -> tuple[Tensor, Tensor]:
    return nearest(x, others, sizes, sizes_of_others, no_token, not_itself)


@opaque.register_fake
def like_results(x: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2], dtype=torch.int64)
