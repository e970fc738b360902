"""Run a model with Token Merging (Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023), from the paper."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from algm_patch.core.matching import best_matches, gbm_leaders
from algm_patch.report.cost import matching_cost

from .block_runner import check_share, running
from .key_merger import KeyMerger


def tome(model: nn.Module, r: int) -> AbstractContextManager[None]:
    """Merge r tokens in each layer, between attention and MLP (ToMe, §3), until the end of the context.

    Every token at an even position proposes to the token at an odd position whose key (mean over the heads) is most
    similar by cosine. The r best proposals are carried out, as means weighted by size. A merged token weighs in
    attention as much as the tokens it holds. The class token and other prefix tokens take no part. The last block gives
    back the full grid, by copying; whatever else reads between the blocks finds merged tokens.

    Tokens stay in raster order, a merged one where its first member stood. The paper's order (what is left of the even
    positions, then the odd ones) is no better: on a third of CamVid's val, as in tradeoff.py, 56.2 mIoU instead of 56.1
    at r=50, 55.1 instead of 55.8 at r=70.

    GFLOPs count the products of the keys at even positions with those at odd ones.

    Args:
        model: holds one ViT of timm, whose attention is ``timm.layers.Attention``.
        r: at least 0.

    Raises:
        ValueError: if the model or r does not fit; or, in a forward pass, if fewer than r proposals are left.
    """
    if r < 0:
        raise ValueError(f"ToMe merges r tokens a layer, at least 0; got r={r}")
    return running(ToMe(model, r))


def tome_share(model: nn.Module, share: float) -> AbstractContextManager[None]:
    """Merge a share of the tokens that are left in each layer (ToMe's constant ratio), as `tome` merges r.

    Args:
        model: as in `tome`.
        share: from 0 to 0.5, as only every second token can leave.

    Raises:
        ValueError: if the model or the share does not fit.
    """
    return running(ToMeShare(model, check_share("ToMe's ratio", share, 0.5)))


class ToMe(KeyMerger):
    """Run the blocks of one model with ToMe."""

    def __init__(self, model: nn.Module, r: int) -> None:
        super().__init__(model)
        self.r = r

    def merges(self, length: int) -> int:
        return self.r

    def leaders(self, layer: int, keys: Tensor, count: int) -> Tensor:
        similarity, proposer, partner = best_matches(keys, self.num_prefix_tokens)
        self.matching += matching_cost(keys.shape[1], self.num_prefix_tokens, keys.shape[2])
        if count > len(proposer):
            raise ValueError(
                f"ToMe was to merge r={count} of the {keys.shape[1]} tokens of block {layer}, but only "
                f"{len(proposer)} can propose. Use a smaller r, or larger images"
            )
        best = similarity.topk(count).indices
        merges = best.new_ones(best.shape).bool()
        return gbm_leaders(merges, proposer[best], partner.gather(1, best), keys.shape[1])


class ToMeShare(ToMe):
    """Run the blocks of one model with ToMe, which merges a share of the tokens that are left in each layer."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__(model, r=0)
        self.share = share

    def merges(self, length: int) -> int:
        return int(self.share * length)
