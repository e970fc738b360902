"""A look at a candidate: one forward pass for each image that gives thresholds tells a search all it wants to know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.thresholds import reached_by
from ..patching.forward_pass import ForwardPass
from ..settings.settings import Settings
from .family import THOUSAND, Candidate


@dataclass(frozen=True)
class Look:
    """Tell how a candidate did on the images that give thresholds.

    Attributes:
        candidate: which merged by shares of each image's own similarities.
        settings: the same with thresholds, which these shares of all images' similarities reach.
        divergences: [N], of the answer to each image.
        saved: the part of the unpatched GFLOPs.
    """

    candidate: Candidate
    settings: Settings
    divergences: Tensor
    saved: float

    @property
    def divergence(self) -> float:
        """The mean over the images."""
        return self.divergences.mean().item()


def similarities_in(passes: Iterable[ForwardPass]) -> dict[tuple[str, int], list[Tensor]]:
    """Return by stage and block, counted from 1, the similarities [K] that forward passes compared."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    for past in passes:
        for layer, block in past.blocks.items():
            for stage, plan in block.plans.items():
                similarity = plan.similarity.flatten()
                found.setdefault((stage, layer + 1), []).append(similarity[similarity != -torch.inf].cpu())
    return found


def with_thresholds(candidate: Candidate, base: Settings, found: dict[tuple[str, int], list[Tensor]]) -> Settings:
    """Return settings with the thresholds that a candidate's shares of pooled similarities reach.

    Args:
        base: settings that merge nothing.
        found: similarities by stage and block, as `similarities_in` returns them.
    """
    taus = [threshold(found.get(("GBM", layer), []), share) for layer, share in candidate.shares]
    return candidate.with_thresholds(base, threshold(found.get(("CLAP", 1), []), candidate.clap), taus)


def threshold(similarities: Sequence[Tensor], thousandths: int) -> float:
    """Return the threshold that a share of all similarities reaches, in thousandths; 1 if there is none.

    It is at most 1, where only equal tokens merge, and at least -1: tokens that hold many others can be less alike
    still, and stay apart.
    """
    pooled = torch.cat([*similarities, torch.empty(0)])
    return reached_by(pooled[None], thousandths, THOUSAND).clamp(-1, 1).item() if len(pooled) else 1.0


def is_better(one: Look, other: Look, slope: float) -> bool:
    """Return whether one look diverges less than another at equal cost, by more than the images' scatter.

    Args:
        slope: by which the logarithm of the divergence grows with the part that is saved.
    """
    at_equal_cost = one.divergences * torch.tensor(slope * (other.saved - one.saved)).exp()
    gains = other.divergences - at_equal_cost
    error = gains.std().item() / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return gains.mean().item() > error
