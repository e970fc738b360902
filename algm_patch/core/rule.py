"""The rule by which global matching proposes tokens to each other."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .matching import best_matches, num_proposals, num_receivers
from .mutual import FOLDED, mutual_matches


class Rule(NamedTuple):
    """Say which tokens are compared, and how far from each other they count.

    Attributes:
        mutual: every token is compared with every other, and two that are each other's nearest may merge. Else those at
            even positions propose to those at odd ones (paper §3.2).
        size_aware: tokens that hold many others are further from each other (see `closeness`).
    """

    mutual: bool = False
    size_aware: bool = False

    def match(
        self, x: Tensor, num_prefix_tokens: int, sizes: Tensor, counts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return similarity, proposer and partner of each proposal: see `best_matches` and `mutual_matches`.

        Args:
            x: [B, L, D] tokens.
            sizes: [B, L] of these.
            counts: [B] tokens of each image. None: L.
        """
        match = mutual_matches if self.mutual else best_matches
        return match(x, num_prefix_tokens, counts, sizes if self.size_aware else None)

    def products(self, length: int, num_prefix_tokens: int, width: int) -> int:
        """Return how many numbers are multiplied to compare the tokens of a sequence as vectors of this width."""
        if self.mutual:
            return min(width, FOLDED) * (length - num_prefix_tokens) ** 2
        return width * num_proposals(length, num_prefix_tokens) * num_receivers(length, num_prefix_tokens)


# As published.
PLAIN = Rule()
