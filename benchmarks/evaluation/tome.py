"""Run a model with Token Merging (Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023), from the paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from algm_patch import Algm
from algm_patch.adapters import LayerTokens
from algm_patch.core.matching import best_matches, gbm_leaders
from algm_patch.functional import TokenMap
from algm_patch.patching.find_vit import Vit, find_vit
from algm_patch.report.cost import vit_cost

from ..common.gflops import METER, operations_by_layer


@contextmanager
def tome(model: nn.Module, r: int) -> Iterator[None]:
    """Merge r tokens in each layer, between attention and MLP (ToMe, §3), until the end of the context.

    Every token at an even position proposes to the token at an odd position whose key (mean over the heads) is most
    similar by cosine. The r best proposals are carried out, as means weighted by size. A merged token weighs in
    attention as much as the tokens it holds. The class token and other prefix tokens take no part. The last block gives
    back the full grid, by copying; whatever else reads between the blocks finds merged tokens.

    Tokens stay in raster order, a merged one where its first member stood. The paper's order (what is left of the even
    positions, then the odd ones) is no better: on a third of CamVid's val, as in tradeoff.py, 56.2 mIoU instead of 56.1
    at r=50, 55.1 instead of 55.8 at r=70.

    Args:
        model: holds one ViT of timm, whose attention is ``timm.layers.Attention``.
        r: at least 0.

    Raises:
        ValueError: if the model or r does not fit; or, in a forward pass, if fewer than r proposals are left.
    """
    if r < 0:
        raise ValueError(f"ToMe merges r tokens a layer, at least 0; got r={r}")
    trunk, vit = find_vit(model)
    check_attention(trunk, vit)
    merger = TokenMerger(r, trunk, vit)
    hooks = [vit.projection.register_forward_hook(merger.see_grid)]
    setattr(trunk, METER, merger)
    for layer, block in enumerate(vit.blocks):
        hooks.append(block.get_submodule("attn.k_norm").register_forward_hook(merger.see_keys))
        block.forward = partial(merger.run_block, layer)
    try:
        yield
    finally:
        for block in vit.blocks:
            del block.forward
        for hook in hooks:
            hook.remove()
        delattr(trunk, METER)


def check_attention(trunk: nn.Module, vit: Vit) -> None:
    """Raise ValueError if ToMe cannot read the keys of a block, or the trunk is patched with ALGM."""
    for number, block in enumerate(vit.blocks, 1):
        attention = getattr(block, "attn", None)
        if type(attention) is not Attention:
            raise ValueError(
                f"ToMe reads the keys of timm.layers.Attention, but block {number} of {type(trunk).__name__} "
                f"({type(block).__name__}) has a {type(attention).__name__}"
            )
    if isinstance(vars(trunk).get("algm"), Algm):
        raise ValueError(f"{type(trunk).__name__} is patched with ALGM. Call remove_algm first")


class TokenMerger:
    """Run the blocks of one model with ToMe, and hold what is merged so far in the present forward pass."""

    def __init__(self, r: int, trunk: nn.Module, vit: Vit) -> None:
        self.r, self.trunk, self.vit = r, trunk, vit
        self.num_prefix_tokens: int = getattr(trunk, "num_prefix_tokens", 0)
        self.depth = len(vit.blocks)
        self.grid = (0, 0)
        self.token_map: TokenMap | None = None
        self.keys: Tensor | None = None

    @property
    def gflops(self) -> float:
        """Return the GFLOPs of the ViT for an image of the last forward pass, matching by keys included."""
        length, layers = self.num_prefix_tokens + self.grid[0] * self.grid[1], range(1, self.depth + 1)
        left = {layer: length - layer * self.r for layer in layers}
        head_dim: Any = self.vit.blocks[0].get_submodule("attn").head_dim
        compared = dict.fromkeys(layers if self.r else (), head_dim)
        cost = vit_cost(self.trunk, self.vit, self.grid)
        return operations_by_layer(cost, length, self.num_prefix_tokens, left, compared) / 1e9

    def see_grid(self, _: nn.Module, __: object, patches: Tensor) -> None:
        """Note the grid of patches [B, D, H, W] and begin a forward pass."""
        self.grid = (patches.shape[2], patches.shape[3])
        self.token_map = None

    def see_keys(self, _: nn.Module, __: object, keys: Tensor) -> None:
        """Note the keys [B, heads, L, D]."""
        self.keys = keys

    def run_block(self, layer: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run a block (counted from 0) on tokens [B, L, D]: attention half, merge, MLP half."""
        block, adapter = self.vit.blocks[layer], self.vit.adapters[layer]
        bias = None if self.token_map is None else self.token_map.key_bias.to(x.dtype)
        tokens = LayerTokens(self.token_map, bias, self.num_prefix_tokens)
        x = adapter.attention_half(block, x, tokens, *args, **kwargs)
        if self.r:
            x = self.merge(layer, x)
        x = adapter.mlp_half(block, x)
        if layer + 1 < self.depth or self.token_map is None:
            return x
        return self.token_map.unmerge(x)

    def merge(self, layer: int, x: Tensor) -> Tensor:
        """Merge r of the tokens [B, L, D] by the keys that attention left."""
        keys, self.keys = self.keys, None
        assert keys is not None
        before = self.token_map
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # as the library plans
            sizes = x.new_ones(x.shape[:2]).float() if before is None else before.sizes
            similarity, proposer, partner = best_matches(keys.mean(1), self.num_prefix_tokens)
            if self.r > len(proposer):
                raise ValueError(
                    f"ToMe was to merge r={self.r} of the {x.shape[1]} tokens of block {layer + 1}, but only "
                    f"{len(proposer)} can propose. Use a smaller r, or larger images"
                )
            best = similarity.topk(self.r).indices
            merges = best.new_ones(best.shape).bool()
            leaders = gbm_leaders(merges, proposer[best], partner.gather(1, best), x.shape[1])
            step = TokenMap.from_leaders(leaders, sizes, x.shape[1] - self.r)
        self.token_map = step if before is None else before.then(step)
        return step.merge(x, sizes)
