"""Tokens that are merged in groups, without a model."""

from __future__ import annotations

import torch

from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.functional import TokenMap

# Four images of seven tokens: each token's group.
GROUPS = [[0, 1, 1, 2, 3, 3, 3], [0, 1, 2, 2, 2, 2, 3], [0, 1, 2, 3, 3, 1, 0], [0, 1, 2, 3, 0, 0, 0]]


def tokens_of_groups(groups: list[list[int]] = GROUPS) -> LayerTokens:
    """Return the tokens of four images in 4 groups of different sizes, with the bias of proportional attention."""
    labels = torch.tensor(groups)
    token_map = TokenMap(labels, torch.zeros(4, 4).scatter_add(1, labels, torch.ones(4, 7)))
    return LayerTokens(token_map, token_map.key_bias, 1)
