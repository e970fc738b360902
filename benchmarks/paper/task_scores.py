"""Score what a model tells of one image against what the unpatched model tells: saliency, and bare features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

EQUAL = 1e-12  # cosines that differ by less are of tokens that merging made equal


def correlation(saliency: Tensor, reference: Tensor) -> float:
    """Return Pearson's correlation of two maps [H, W]."""
    return torch.corrcoef(torch.stack([saliency.flatten(), reference.flatten()]).double())[0, 1].item()


def same_side(saliency: Tensor, reference: Tensor) -> float:
    """Return the share of the pixels [H, W] that both maps put on the same side of 0.5."""
    return ((saliency >= 0.5) == (reference >= 0.5)).double().mean().item()


def mean_cosine(tokens: Tensor, reference: Tensor) -> float:
    """Return the mean cosine of the tokens [N, D] of the same patches."""
    return cosine_similarity(tokens.double(), reference.double()).mean().item()


def retrieved(tokens: Tensor, others: Tensor, reference: Tensor, reference_others: Tensor) -> float:
    """Return the share of the patches of an image that find the same patch of another image as with the reference.

    A patch finds the one whose token is most similar by cosine. Merged tokens are equal: of k equal tokens of which one
    is right, the right one is found once in k times, as by chance.

    Args:
        tokens, others: of the image [N, D] and of the other image [M, D].
        reference, reference_others: the same, of the unpatched model.
    """
    wanted = cosines(reference, reference_others).argmax(1, keepdim=True)
    found = cosines(tokens, others)
    best = found >= found.amax(1, keepdim=True) - EQUAL
    return (best.gather(1, wanted)[:, 0] / best.sum(1)).double().mean().item()


def cosines(tokens: Tensor, others: Tensor) -> Tensor:
    """Return the cosines [N, M] of tokens [N, D] and [M, D]."""
    return normalize(tokens.double(), dim=1) @ normalize(others.double(), dim=1).mT
