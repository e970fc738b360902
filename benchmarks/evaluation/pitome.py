"""Run a model with PiToMe, from its paper.

Tran et al., *Accelerating Transformers with Spectrum-Preserving Token Merging*, NeurIPS 2024.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from algm_patch.core.matching import gbm_leaders

from .block_runner import check_share, running
from .group_merger import behind_prefix
from .key_merger import KeyMerger

MARGIN = 0.9  # it falls with the layers, to 0 in the last


def pitome(model: nn.Module, share: float) -> AbstractContextManager[None]:
    """Merge a share of the tokens that are left in each layer, those of high energy, between attention and MLP (§3).

    A token's energy says how many others are like it: the mean over all others of the cosines of the keys (mean over
    the heads), where what is below a margin counts as ``exp(cosine - margin) - 1``. To merge k tokens away, the 2k of
    highest energy take part; the others are protected. In order of energy they go to A and B in turns, and every token
    of A joins the most similar one of B. Means, attention, prefix and grid are as in `tome`.

    Energy is high in the largest regions, whose tokens merge again and again. That is what costs on dense tasks: with
    the cosine to the most similar token in place of the mean over all, and all else alike, 98.9 % of the pixels of five
    training images of CamVid stay as they were instead of 93.2 % (DINOv2 ViT-S/14, share 0.06).

    GFLOPs count the products of all keys with each other, from which both energy and matches are read.

    Args:
        model: holds one ViT of timm, whose attention is ``timm.layers.Attention``.
        share: from 0 to 0.5, as a half of those that take part leave.

    Raises:
        ValueError: if the model or the share does not fit.
    """
    return running(PiToMe(model, check_share("PiToMe's ratio", share, 0.5)))


class PiToMe(KeyMerger):
    """Run the blocks of one model with PiToMe."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__(model)
        self.share = share

    def merges(self, length: int) -> int:
        return int(self.share * length)

    def leaders(self, layer: int, keys: Tensor, count: int) -> Tensor:
        unit = normalize(keys[:, self.num_prefix_tokens :].float(), dim=-1)
        self.matching += 2 * unit.shape[2] * unit.shape[1] ** 2
        margin = MARGIN * (1 - layer / self.depth)
        return behind_prefix(energetic_leaders(unit @ unit.mT, count, margin), self.num_prefix_tokens)


def energetic_leaders(similarity: Tensor, count: int, margin: float) -> Tensor:
    """Return the leaders [B, N] after ``count`` of the tokens of highest energy have joined others.

    Args:
        similarity: [B, N, N] cosines.
        count: at most N / 2.
        margin: see `energies`.
    """
    batch, length, _ = similarity.shape
    order = energies(similarity, margin).argsort(dim=1, descending=True, stable=True)[:, : 2 * count]
    a, b = order[:, ::2], order[:, 1::2]
    rows = similarity.gather(1, a[:, :, None].expand(-1, -1, length))
    best = rows.gather(2, b[:, None].expand(-1, count, -1)).argmax(2)
    merges = torch.ones(batch, count, dtype=torch.bool, device=similarity.device)
    return gbm_leaders(merges, a, b.gather(1, best), length)


def energies(similarity: Tensor, margin: float) -> Tensor:
    """Return the energy [B, N] of each token, of cosines [B, N, N] (§3.2, Eq. 4, with alpha = 1)."""
    counted = torch.where(similarity >= margin, similarity, (similarity - margin).exp() - 1)
    others = counted.sum(2) - counted.diagonal(dim1=1, dim2=2)
    return others / (similarity.shape[1] - 1)
