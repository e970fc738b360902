"""Show a method the keys that attention compared, in every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .group_merger import GroupMerger


class KeyMerger(GroupMerger):
    """Merge tokens in every layer between attention and MLP, by their keys, averaged over the heads."""

    keys: Tensor | None = None

    def merges(self, length: int) -> int:
        """Return how many of so many patch tokens a layer is to merge away."""
        raise NotImplementedError

    def leaders(self, layer: int, keys: Tensor, count: int) -> Tensor:
        """Return the leaders [B, P+N], of keys [B, P+N, D] of which ``count``, more than none, are to merge away."""
        raise NotImplementedError

    def hooks(self) -> list[Any]:
        norms = [block.get_submodule("attn.k_norm") for block in self.vit.blocks]
        return [*super().hooks(), *(norm.register_forward_hook(self.see_keys) for norm in norms)]

    def see_keys(self, _: nn.Module, __: object, keys: Tensor) -> None:
        """Note the keys [B, heads, L, D]."""
        self.keys = keys

    def between(self, layer: int, x: Tensor) -> Tensor:
        keys, self.keys = self.keys, None
        assert keys is not None
        count = self.merges(x.shape[1] - self.num_prefix_tokens)
        if not count:
            return x
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # as the library plans
            leaders = self.leaders(layer, keys.mean(1), count)
        return self.merged(x, leaders, x.shape[1] - count)
