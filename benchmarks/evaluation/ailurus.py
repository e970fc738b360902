"""Run a model with AiluRus, from its paper's description.

Li et al., *AiluRus: A Scalable ViT Framework for Dense Prediction*, NeurIPS 2023.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .block_runner import check_layer, check_share, running
from .group_merger import GroupMerger, behind_prefix, leaders_of

# Of eight combinations the one of least divergence on five training images of CamVid (DINOv2 ViT-S/14).
SPATIAL = 0.2  # the part of the places in the distance of two tokens; the rest is of their features
REACH = 24  # so many neighbours in the grid decide on a token's density,
NEAREST = 5  # and of these so many that are nearest by distance


def ailurus(model: nn.Module, layer: int, share: float) -> AbstractContextManager[None]:
    """Merge tokens behind one layer into a share of them, by density peaks, until the end of the context.

    The distance of two tokens is a mean of that of their features and of their places. A token's density falls with the
    distances to the nearest tokens around it; its separation is the distance to the nearest denser token. The tokens
    with the largest product of both are anchors, and every other token joins its nearest anchor. An anchor becomes the
    mean of itself and all that joined. Attention, prefix and grid are as in `tome`.

    GFLOPs count the products of all tokens with each other.

    Args:
        model: holds one ViT of timm, whose attention is ``timm.layers.Attention``.
        layer: counted from 1, behind which tokens merge.
        share: of the tokens that are left, at least one; 1: nothing merges.

    Raises:
        ValueError: if the model, the layer or the share does not fit.
    """
    return running(AiluRus(model, layer, check_share("AiluRus' share", share)))


class AiluRus(GroupMerger):
    """Run the blocks of one model with AiluRus."""

    def __init__(self, model: nn.Module, layer: int, share: float) -> None:
        super().__init__(model)
        self.layer, self.share = check_layer("AiluRus merges", layer, self.depth), share

    def before(self, layer: int, x: Tensor) -> Tensor:
        length = self.grid[0] * self.grid[1]
        count = max(1, round(self.share * length))
        if layer != self.layer + 1 or count == length:
            return x
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            ranks = spatial_ranks(self.grid).to(x.device)
            distance = distances(x[:, self.num_prefix_tokens :].float(), ranks)
            self.matching += 2 * x.shape[2] * length**2
            leaders = leaders_of(nearest_anchors(distance, ranks, count), count)
        return self.merged(x, behind_prefix(leaders, self.num_prefix_tokens), self.num_prefix_tokens + count)


@lru_cache(maxsize=4)
def spatial_ranks(grid: tuple[int, int]) -> Tensor:
    """Return [N, N]: the place of each token in the order of the distances in the grid from another; of itself 0."""
    rows, columns = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    order = (places[:, None] - places).square().sum(2).argsort(dim=1, stable=True)
    return order.argsort(dim=1)


def distances(x: Tensor, ranks: Tensor) -> Tensor:
    """Return the distance [B, N, N] of tokens [B, N, D]: of unit features, squared, and of places, by rank."""
    unit = normalize(x, dim=-1)
    return (1 - SPATIAL) * (2 - 2 * unit @ unit.mT) + SPATIAL * ranks / REACH


def nearest_anchors(distance: Tensor, ranks: Tensor, count: int) -> Tensor:
    """Return for each token the number of its anchor [B, N], of the ``count`` tokens that score most.

    Args:
        distance: [B, N, N].
        ranks: [N, N], see `spatial_ranks`.
    """
    rho = densities(distance, ranks)
    anchors = (rho * separations(distance, rho)).topk(count).indices
    return distance.gather(2, anchors[:, None].expand(-1, distance.shape[1], -1)).argmin(2)


def densities(distance: Tensor, ranks: Tensor) -> Tensor:
    """Return the density [B, N]: ``exp`` of minus the mean distance to the nearest tokens around."""
    around = distance.masked_fill((ranks == 0) | (ranks > REACH), torch.inf)
    return (-around.topk(min(NEAREST, distance.shape[1] - 1), largest=False).values.mean(2)).exp()


def separations(distance: Tensor, rho: Tensor) -> Tensor:
    """Return [B, N]: the distance to the nearest token of higher density; to the farthest token if there is none."""
    denser = rho[:, None] > rho[:, :, None]
    nearest = distance.masked_fill(~denser, torch.inf).amin(2)
    return torch.where(denser.any(2), nearest, distance.amax(2))
