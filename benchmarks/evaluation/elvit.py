"""Run a model with ELViT, from its paper.

Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*, NeurIPS 2022.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from math import sqrt

import torch
from torch import Tensor, nn

from algm_patch.adapters import LayerTokens

from .block_runner import BlockRunner, check_layer, check_share, running
from .local_clusters import Clusters, cluster, reconstruct

ROUNDS, NEAREST = 5, 20  # kappa and k of the paper
TAU = 0.25  # of 0.1, 0.25, 0.5 and 1 the one of most agreement on five training images of CamVid (DINOv2 ViT-S/14)


def elvit(model: nn.Module, layer: int, share: float) -> AbstractContextManager[None]:
    """Cluster the tokens behind one layer, run the layers behind it on the clusters, and rebuild the tokens at the end.

    Clusters are local, as superpixels are: `local_clusters.cluster` and `local_clusters.reconstruct`. The prefix stays.
    The paper gives tau for each network; here it is in units of the mean squared distance of a token to its nearest
    centre. A cluster weighs in attention as much as the tokens that belong to it, which the paper does without: on five
    training images of CamVid, 40 % of the tokens behind layer 5, 95.8 % of the pixels agree with it and 95.6 % without.

    GFLOPs count the products of tokens and the centres around them, two for each pair and round: of distances and of
    means; and at the end those of all tokens and all centres, and of the nearest centres' means.

    Args:
        model: holds one ViT of timm, whose attention is ``timm.layers.Attention``.
        layer: alpha, counted from 1.
        share: clusters for each token, at least one in all. The sides of their grid are its square root times those of
            the tokens.

    Raises:
        ValueError: if the model, the layer or the share does not fit.
    """
    return running(ELViT(model, layer, check_share("ELViT's share", share)))


class ELViT(BlockRunner):
    """Run the blocks of one model with ELViT."""

    def __init__(self, model: nn.Module, layer: int, share: float) -> None:
        super().__init__(model)
        self.layer, self.share = check_layer("ELViT clusters", layer, self.depth), share
        self.clusters: Clusters | None = None
        self.before_clustering = torch.empty(0)

    def see_grid(self, module: nn.Module, inputs: object, patches: Tensor) -> None:
        super().see_grid(module, inputs, patches)
        self.clusters = None

    def before(self, layer: int, x: Tensor) -> Tensor:
        if layer != self.layer + 1:
            return x
        prefix, patches = x.tensor_split([self.num_prefix_tokens], 1)
        high, wide = (max(1, round(side * sqrt(self.share))) for side in self.grid)
        self.before_clustering = patches.float()
        with torch.autocast(x.device.type, enabled=False):
            self.clusters = cluster(self.before_clustering, self.grid, (high, wide), ROUNDS, TAU)
        pairs = patches.shape[1] * min(3, high) * min(3, wide)
        self.matching += 2 * x.shape[2] * pairs * (2 * ROUNDS + 1)
        return torch.cat([prefix, self.clusters.centres.to(x.dtype)], 1)

    def tokens(self, x: Tensor) -> LayerTokens:
        if self.clusters is None:
            return super().tokens(x)
        prefix = self.clusters.sizes.new_zeros(len(x), self.num_prefix_tokens)
        bias = torch.cat([prefix, self.clusters.sizes.clamp_min(1e-6).log()], 1)[:, None, None].to(x.dtype)
        return LayerTokens(None, bias, self.num_prefix_tokens)

    def restored(self, x: Tensor) -> Tensor:
        if self.clusters is None:
            raise ValueError(f"ELViT's layer {self.layer + 1} was passed by, so there are no clusters")
        prefix, refined = x.tensor_split([self.num_prefix_tokens], 1)
        length, count = self.before_clustering.shape[1], refined.shape[1]
        self.matching += 2 * x.shape[2] * length * (count + min(NEAREST, count))
        with torch.autocast(x.device.type, enabled=False):
            patches = reconstruct(refined, self.before_clustering, self.clusters, NEAREST, TAU)
        return torch.cat([prefix, patches.to(x.dtype)], 1)
