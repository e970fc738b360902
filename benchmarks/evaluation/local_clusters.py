"""Cluster the tokens of a grid around centres near by, and rebuild them from their clusters: ELViT's two operators.

Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*, NeurIPS 2022, §3.
Distances are squared, between tokens as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, embedding_bag


@dataclass(frozen=True)
class Clusters:
    """Hold the clusters of the tokens of a batch.

    Attributes:
        centres: [B, M, D].
        sizes: [B, M]; how many tokens belong to each, in parts.
        scale: [B, 1, 1]; the mean squared distance of a token to the nearest centre around it.
    """

    centres: Tensor
    sizes: Tensor
    scale: Tensor


def cluster(x: Tensor, grid: tuple[int, int], cells: tuple[int, int], rounds: int, tau: float) -> Clusters:
    """Cluster the tokens [B, H*W, D] of a grid (H, W) into ``cells`` (h, w) clusters.

    Centres begin as the means of cells of the grid. In each round every token is shared out among the centres around
    its cell, by ``softmax(-distance / tau)``, and the centres become the means of what they were given.

    Args:
        rounds: kappa, at least 1.
        tau: in units of ``scale``.
    """
    centres = adaptive_avg_pool2d(x.mT.unflatten(2, grid), cells).flatten(2).mT
    around = centres_around(grid, cells).to(x.device)
    scale = distances_around(x, centres, around).amin(2).mean(1)[:, None, None].clamp_min(1e-12)
    for _ in range(rounds):
        parts = (-distances_around(x, centres, around) / (tau * scale)).softmax(2)
        centres, sizes = shared_out(x, parts, around, centres)
    return Clusters(centres, sizes, scale)


def centres_around(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Return for each token the numbers of the 3x3 centres around its cell [N, 9]; at an edge, those next to it.

    There are fewer than 9 if there are fewer than 3 rows or columns of cells.
    """
    rows, columns = (around_one(side, count) for side, count in zip(grid, cells, strict=True))
    return (rows[:, None, :, None] * cells[1] + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def around_one(side: int, count: int) -> Tensor:
    """Return for each place along a side the numbers of the (at most) 3 of ``count`` cells around it."""
    width = min(3, count)
    cell = torch.arange(side) * count // side
    return (cell - 1).clamp(0, count - width)[:, None] + torch.arange(width)


def distances_around(x: Tensor, centres: Tensor, around: Tensor) -> Tensor:
    """Return the squared distance of tokens [B, N, D] to the centres around them [B, N, 9]."""
    return torch.stack([(x - centres[:, near]).square().sum(2) for near in around.unbind(1)], 2)


def shared_out(x: Tensor, parts: Tensor, around: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means [B, M, D] of what the centres are given of the tokens, and how much it is [B, M].

    Args:
        parts: [B, N, 9] of each token to each of the centres ``around`` [N, 9].
        centres: [B, M, D] before; one that is given nothing stays.
    """
    sums, sizes = torch.zeros_like(centres), centres.new_zeros(centres.shape[:2])
    for part, near in zip(parts.unbind(2), around.unbind(1), strict=True):
        sums.index_add_(1, near, part[:, :, None] * x)
        sizes.index_add_(1, near, part)
    means = sums / sizes.clamp_min(1e-12)[:, :, None]
    return torch.where(sizes[:, :, None] > 0, means, centres), sizes


def reconstruct(refined: Tensor, x: Tensor, clusters: Clusters, nearest: int, tau: float) -> Tensor:
    """Return tokens [B, N, D] as means of refined clusters, weighted by how near they were before.

    Args:
        refined: [B, M, D], what became of the centres.
        x: [B, N, D], the tokens that were clustered.
        nearest: k, so many centres count for each token.
        tau: as in `cluster`.
    """
    batch, count, width = refined.shape
    squares = x.square().sum(2)[:, :, None] + clusters.centres.square().sum(2)[:, None]
    distance = (squares - 2 * x @ clusters.centres.mT) / (tau * clusters.scale)
    found = distance.topk(min(nearest, count), largest=False)
    weights = (-found.values).softmax(2).to(refined.dtype)
    rows = found.indices + count * torch.arange(batch, device=x.device)[:, None, None]
    flat = embedding_bag(
        rows.flatten(0, 1), refined.flatten(0, 1), per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    return flat.view(batch, -1, width)
