"""The GFLOPs that a candidate will save, by arithmetic: so that a search compares candidates of equal cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import nn

from ..core.rule import Rule
from ..patching.forward_pass import ForwardPass
from ..report.cost import VitCost, matching_cost
from .cost import Run, cost_of
from .family import THOUSAND, Candidate, Family

# Halvings of the interval in which the share of a level lies; shares are thousandths.
HALVINGS = 12
# Proposals, as a part of the patches, until a pass has shown how many there are. Every second token makes one; about
# two thirds of random points are in pairs that are each other's nearest.
PROPOSALS = {"bipartite": 0.5, "mutual": 0.3}


@dataclass
class Prediction:
    """Predict how many GFLOPs candidates save on an image.

    Attributes:
        passes: of the unpatched model on this image, each with what the ViT costs.
        proposals: as a part of the patches, as the last candidate had them, by matching, what is compared, and block
            counted from 1.
    """

    passes: list[tuple[ForwardPass, VitCost]]
    proposals: dict[tuple[str, str, int], float] = field(default_factory=dict)

    def saved(self, candidate: Candidate) -> float:
        """Return the part of the unpatched GFLOPs that a candidate saves."""
        unpatched = sum(past.batch * vit.without_merging(past) for past, vit in self.passes)
        merging = sum(past.batch * self._operations(candidate, past, vit) for past, vit in self.passes)
        return 1 - merging / unpatched

    def knows(self, candidate: Candidate) -> bool:
        """Return whether a candidate that matches alike has shown how many proposals there are, in these blocks."""
        return all((candidate.matching, candidate.compare, layer) in self.proposals for layer in candidate.layers)

    def candidate(self, family: Family, saved: float) -> Candidate | None:
        """Return the candidate of a family that saves this part; None if none saves so much, or all save more."""
        low, high = 0.0, 1.0
        if not self.saved(family.at(low)) < saved <= self.saved(family.at(high)):
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.saved(family.at(middle)) >= saved else (middle, high)
        return family.at(high)

    def _operations(self, candidate: Candidate, past: ForwardPass, vit: VitCost) -> float:
        """Return the operations for an image of a forward pass of the unpatched model."""
        prefix, patches = past.num_prefix_tokens, float(prod(past.grid))
        shares, total, rule = dict(candidate.shares), float(vit.fixed), Rule(candidate.matching == "mutual")
        for layer in (block + 1 for block in sorted(past.blocks)):
            before = patches
            if layer == 1 and candidate.clap:
                window = past.settings.window
                windows = (past.grid[0] // window[0]) * (past.grid[1] // window[1])
                patches -= reaching(candidate.clap, windows) * (prod(window) - 1)
            if layer in shares:
                total += matching_cost(round(prefix + patches), prefix, past.width, rule)
                place = (candidate.matching, candidate.compare, layer)
                proposals = self.proposals.get(place, PROPOSALS[candidate.matching])
                patches -= reaching(shares[layer], proposals * patches)
            in_mlp = patches if past.settings.place == "before_mlp" else before
            total += vit.blocks[layer - 1](round(prefix + before), round(prefix + in_mlp))
        return total


def reaching(thousandths: int, count: float) -> float:
    """Return how many of so many similarities reach the threshold of a share: that which it names, too."""
    return min(count, count * thousandths // THOUSAND + 1)


def predict_from(model: nn.Module, unpatched: Run, guess: bool) -> Prediction:
    """Return a prediction from a run of the unpatched model; ``guess`` as in `gflops_of`."""
    return Prediction([(past, cost_of(model, past, guess)) for past in unpatched.passes])


def proposals_in(passes: Iterable[ForwardPass], candidate: Candidate) -> Mapping[tuple[str, str, int], float]:
    """Return the proposals of GBM as a part of the patches before them, as `Prediction` holds them: of all passes."""
    proposals, patches = Counter[tuple[str, str, int]](), Counter[tuple[str, str, int]]()
    for past in passes:
        for layer, block in past.blocks.items():
            if (plan := block.plans.get("GBM")) is not None:
                place = (candidate.matching, candidate.compare, layer + 1)
                proposals[place] += int(plan.similarity.isfinite().sum())
                patches[place] += int((plan.sizes > 0).sum()) - block.num_prefix_tokens * len(plan.sizes)
    return {place: proposals[place] / max(1, patches[place]) for place in patches}
