"""Compute the threshold from similarities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Similarities are clamped this far inside (-1, 1) before Fisher's transform, which is infinite at the ends.
EDGE = 1e-6
# The automatic rule merges at least one window in ten,
LEAST_SHARE = (1, 10)
# but of those less similar than this only the best, and no such proposals: texture all over, where nothing is alike,
# stays as it is. Below all thresholds that the authors publish (0.88 to 0.955).
LEAST_SIMILAR, LEAST_PROPOSED = 0.85, 0.75


@dataclass(frozen=True)
class Share:
    """Name a rule: the threshold that ``parts`` of ``of`` equal parts of each image's own similarities reach.

    `algm_patch.tune` looks at merges by it.
    """

    parts: int
    of: int

    def __call__(self, similarity: Tensor) -> Tensor:
        """Return [B] of similarities [B, K], in which minus infinity stands for nothing."""
        if similarity.shape[1] == 0:
            return similarity.new_full((len(similarity),), torch.inf)
        return reached_by(similarity, self.parts, self.of)


def reached_by(similarity: Tensor, parts: int, of: int) -> Tensor:
    """Return [B]: the similarity that the share ``parts / of`` (below 1) of each row of [B, K] reaches, at least one.

    Minus infinity stands for nothing.
    """
    count = (similarity != -torch.inf).sum(1, keepdim=True)
    place = similarity.shape[1] - 1 - count * parts // of  # in whole numbers: exact, and on Apple GPUs too
    return similarity.sort(1).values.gather(1, place)[:, 0]


def auto_tau(similarity: Tensor) -> Tensor:
    """Return the mean + standard deviation of Fisher's z, mapped back: inside (-1, 1) whatever the similarities.

    The paper's rule (§3.3 of the paper, mean + standard deviation) on ``atanh(similarity)``. On images whose
    windows are mostly alike (a subject before an empty background) the spread comes from below and mean + standard
    deviation exceeds every window; there the threshold is the similarity that a tenth of the windows reach. Windows of
    opposite tokens never merge. Where even that is below 0.85, as on texture all over, 0.85 is the threshold, or the
    similarity of the best window if none reaches it.

    Args:
        similarity: [B, K] of K windows.

    Returns:
        [B].
    """
    batch, count = similarity.shape
    if similarity.numel() == 0:
        return similarity.new_full((batch,), torch.inf)
    inside = similarity.clamp(EDGE - 1, 1 - EDGE)
    z = inside.atanh()
    rule = (z.mean(1) + z.std(1, correction=min(1, count - 1))).tanh()
    return torch.minimum(rule, reached_by(inside, *LEAST_SHARE)).clamp(min=LEAST_SIMILAR).minimum(inside.amax(1))


def paper_tau(similarity: Tensor) -> Tensor:
    """Return the mean + standard deviation of the similarities, as published (§3.3 of the paper). It can exceed 1.

    A single window has no deviation: nothing passes.

    Args:
        similarity: [B, K] of K windows.

    Returns:
        [B].
    """
    if similarity.shape[1] < 2 or similarity.shape[0] == 0:
        return similarity.new_full(similarity.shape[:1], torch.inf)
    return similarity.mean(1) + similarity.std(1)


def adaptive_tau(similarity: Tensor, layer: int) -> Tensor:
    """Return the authors' GBM threshold for each image: ``mean(best) + std(best) / layer``.

    A single proposal has no deviation: nothing passes.

    Args:
        similarity: [B, a] of every A token's best match; minus infinity stands for none.
        layer: of the merge, counted from 1.

    Returns:
        [B].
    """
    none = similarity == -torch.inf
    count = similarity.shape[1] - none.sum(1)
    # Numbers are filled in, not chosen by torch.where, which makes a tensor of each: one more launch on a GPU.
    mean = similarity.masked_fill(none, 0).sum(1) / count
    squares = (similarity - mean[:, None]).masked_fill_(none, 0).square_().sum(1)
    return (mean + (squares / (count - 1)).sqrt() / layer).masked_fill_(count < 2, torch.inf)


def clap_tau(similarity: Tensor, tau: float | str | Share) -> Tensor:
    """Return the threshold [B] or [] that the setting ``tau`` means for window similarities [B, K]."""
    if isinstance(tau, Share):
        return tau(similarity)
    if tau == "auto":
        return auto_tau(similarity)
    if tau == "paper":
        return paper_tau(similarity)
    return similarity.new_full((), float(tau))


def gbm_tau(similarity: Tensor, tau: float | str | Share | Tensor, layer: int) -> Tensor:
    """Return the threshold [B] or [] that the setting ``gbm_tau`` means for A's best similarities [B, a]."""
    if isinstance(tau, str):
        adaptive = adaptive_tau(similarity, layer)
        return adaptive.clamp(min=LEAST_PROPOSED) if tau == "auto" else adaptive
    if isinstance(tau, Share):
        return tau(similarity)
    return tau if isinstance(tau, Tensor) else similarity.new_full((), float(tau))
