"""Merge groups of tokens into their means and give the means back to their members, when a method says which."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algm_patch.adapters import LayerTokens
from algm_patch.core.matching import first_members
from algm_patch.functional import TokenMap

from .block_runner import BlockRunner


class GroupMerger(BlockRunner):
    """Run blocks on groups of tokens: means, which weigh in attention as much as the tokens that they hold.

    Attributes:
        token_map: from the tokens of the grid to the groups of the present forward pass; None: nothing has merged.
    """

    token_map: TokenMap | None = None

    def see_grid(self, module: nn.Module, inputs: object, patches: Tensor) -> None:
        super().see_grid(module, inputs, patches)
        self.token_map = None

    def tokens(self, x: Tensor) -> LayerTokens:
        bias = None if self.token_map is None else self.token_map.key_bias.to(x.dtype)
        return LayerTokens(self.token_map, bias, self.num_prefix_tokens)

    def restored(self, x: Tensor) -> Tensor:
        return x if self.token_map is None else self.token_map.unmerge(x)

    def merged(self, x: Tensor, leaders: Tensor, count: int) -> Tensor:
        """Merge tokens [B, L, D] into ``count`` means, weighted by the tokens that each holds already.

        Args:
            leaders: [B, L]; the position of the first token of each token's group.
        """
        before = self.token_map
        sizes = x.new_ones(x.shape[:2]).float() if before is None else before.sizes
        step = TokenMap.from_leaders(leaders, sizes, count)
        self.token_map = step if before is None else before.then(step)
        return step.merge(x, sizes)


def behind_prefix(leaders: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return the leaders [B, P+N] of a sequence whose patches have ``leaders`` [B, N], counted among themselves."""
    prefix = torch.arange(num_prefix_tokens, device=leaders.device).expand(len(leaders), -1)
    return torch.cat([prefix, leaders + num_prefix_tokens], 1)


def leaders_of(groups: Tensor, count: int) -> Tensor:
    """Return the position of the first member of each token's group, of groups [B, N] from 0 to ``count`` - 1."""
    return first_members(groups, count).gather(1, groups)
