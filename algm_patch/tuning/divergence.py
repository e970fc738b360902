"""How far an answer is from the unpatched model's: 0 if it is the same. A search goes by it.

It tells settings apart on few images that keep the same number of pixels: it sees how sure a model is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

# Of a map of logits at most so many positions are looked at: neighbours tell nearly the same.
POSITIONS = 2**14


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log probabilities [K, classes] at K evenly spaced positions, from logits [B, classes, h, w]."""
    positions = logits.movedim(1, -1).flatten(0, -2)
    return positions[:: -(-len(positions) // POSITIONS)].float().log_softmax(-1).cpu()


def divergence_of_classes(before: Tensor, after: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of class distributions, from log probabilities [K, classes]."""
    return kl_div(after, before, reduction="batchmean", log_target=True).item()


def relative_error(before: Tensor, after: Tensor) -> float:
    """Return the squared error of values, as a part of the squared values of before."""
    before, after = before.double(), after.double()
    return ((after - before).square().sum() / before.square().sum().clamp(min=torch.finfo(torch.float64).tiny)).item()


def disagreement(before: Tensor, after: Tensor) -> float:
    """Return the share of the pixels whose class is another one."""
    return (before != after).double().mean().item()
