"""Networks of the sizes that ALGM was published for, and methods that cost them equally many FLOPs. Used by gpu.py."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import timm
import torch
from batches import pictures, prepared
from cost import layer_by_layer
from peers import Method
from PIL import Image
from torch import Tensor, nn

from algm_patch.patching.find_vit import find_vit
from algm_patch.report.cost import VitCost, vit_cost
from algm_patch.tuning.calibrate import similarities

UNPATCHED, FIXED, PLAIN, THRESHOLDS, TOME = "unpatched", "fixed counts", "fixed, plain", "thresholds", "ToMe"
METHODS = (UNPATCHED, FIXED, PLAIN, THRESHOLDS, TOME)
# Of the patches that CLAP leaves: as many as after the authors' threshold, in benchmarks/results/overhead_cpu.txt.
GBM_KEEPS = 0.7


@dataclass(frozen=True)
class Network:
    """
    Attributes:
        model: of timm.
        size: side of the image in pixels.
        gbm_layer: the published one.
        published: GFLOPs with ALGM / without.
    """

    model: str
    size: int
    gbm_layer: int
    published: float


# The most important first. The last one is to try benchmarks with.
NETWORKS = {
    "ViT-S": Network("vit_small_patch16_224", 512, 5, 26.3 / 38.6),
    "ViT-B": Network("vit_base_patch16_224", 512, 5, 91 / 130),
    "ViT-L": Network("vit_large_patch16_224", 640, 7, 438 / 672),
    "ViT-Ti": Network("vit_tiny_patch16_224", 512, 5, 8.4 / 12.8),
    "DINOv2-L": Network("vit_large_patch14_dinov2", 1036, 7, 438 / 672),
    "test": Network("test_vit", 96, 3, 0.7),
}


def built(network: Network, device: str, dtype: torch.dtype) -> Any:
    """With random weights; gives back all tokens [B, P+N, D]."""
    torch.manual_seed(0)
    with torch.device(device):
        model = timm.create_model(network.model, img_size=network.size, num_classes=0, global_pool="")
    return model.eval().to(device, dtype)


def twin(model: nn.Module) -> nn.Module:
    """Another module with the same weights, at the same place in memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def photographs(model: nn.Module, network: Network, count: int) -> Tensor:
    """[count, 3, H, W]: parts of photographs, all of them different, where the model is and in its dtype."""
    draw, whole = random.Random(0), pictures(None)
    parts = [prepared(cropped(whole[i % len(whole)], draw), network.size) for i in range(count)]
    return torch.cat(parts).to(next(model.parameters()))


def cropped(picture: Image.Image, draw: random.Random) -> Image.Image:
    side = int(min(picture.size) * draw.uniform(0.5, 1))
    left, top = (draw.randint(0, length - side) for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


# -- tokens and FLOPs


@dataclass(frozen=True)
class Flops:
    """The operations for an image of a model that is not patched, as a function of the tokens in each layer."""

    model: Any
    cost: VitCost

    @classmethod
    def of(cls, model: Any) -> Flops:
        return cls(model, vit_cost(*find_vit(model), model.patch_embed.grid_size))

    def unpatched(self) -> int:
        return self._layer_by_layer({}, {})

    def algm(self, network: Network, kept: tuple[int, int]) -> int:
        """Return those of ALGM that keeps so many patches after CLAP, and after GBM."""
        prefix = self.model.num_prefix_tokens
        left = {1: prefix + kept[0], network.gbm_layer: prefix + kept[1]}
        return self._layer_by_layer(left, {network.gbm_layer: self.model.embed_dim})

    def tome(self, r: int) -> int:
        """Return those of ToMe that merges r tokens in every layer."""
        layers = range(1, len(self.model.blocks) + 1)
        left = {layer: full_length(self.model) - layer * r for layer in layers}
        return self._layer_by_layer(left, dict.fromkeys(layers, self.model.blocks[0].attn.head_dim))

    def _layer_by_layer(self, left: dict[int, int], compared: dict[int, int]) -> int:
        return layer_by_layer(self.cost, full_length(self.model), self.model.num_prefix_tokens, left, compared)


def full_length(model: Any) -> int:
    return model.num_prefix_tokens + model.patch_embed.num_patches


def algm_kept(model: Any, network: Network) -> tuple[int, int]:
    """Patches after CLAP and after GBM, so that FLOPs fall as published."""
    high, wide = model.patch_embed.grid_size
    flops = Flops.of(model)
    aim = network.published * flops.unpatched()

    def kept(windows: int) -> tuple[int, int]:
        after_clap = high * wide - 3 * windows
        return after_clap, round(GBM_KEEPS * after_clap)

    windows = range((high // 2) * (wide // 2) + 1)
    return kept(min(windows, key=lambda n: abs(flops.algm(network, kept(n)) - aim)))


def tome_r(model: Any, network: Network) -> int:
    """Tokens that ToMe merges in every layer, so that FLOPs fall as published."""
    flops = Flops.of(model)
    aim = network.published * flops.unpatched()
    most = full_length(model) // (len(model.blocks) + 1)  # in the last layer every other token can still propose
    return min(range(1, most), key=lambda r: abs(flops.tome(r) - aim))


# -- methods


def method(name: str, model: Any, network: Network, images: Tensor) -> Method:
    """How the model runs, with counts or thresholds for these images."""
    if name == UNPATCHED:
        return peers.unpatched()
    if name == TOME:
        r = tome_r(model, network)
        return Method(name, f"r={r}", partial(peers.tome, r=r))
    kept = algm_kept(model, network)
    if name == THRESHOLDS:
        return by_thresholds(model, network, images, kept)
    settings = {"tokens": list(kept), "gbm_layers": [network.gbm_layer], "proportional_attention": name == FIXED}
    setting = " -> ".join(map(str, (model.patch_embed.num_patches, *kept)))
    return Method(name, setting, partial(peers.algm, **settings))


def by_thresholds(model: Any, network: Network, images: Tensor, kept: tuple[int, int]) -> Method:
    """Thresholds that as many windows and proposals of all images reach as fixed counts would merge."""
    layer, run = network.gbm_layer, partial(model, images)
    with peers.algm(model, gbm_layers=[]):
        (windows,) = similarities(model, "CLAP", [1], run)
    tau = reached_by(windows, (model.patch_embed.num_patches - kept[0]) // 3 * len(images))
    with peers.algm(model, gbm_layers=[layer], tau=tau):
        (proposals,) = similarities(model, "GBM", [layer], run)
    gbm_tau = reached_by(proposals, (kept[0] - kept[1]) * len(images))
    patch = partial(peers.algm, gbm_layers=[layer], tau=tau, gbm_tau=gbm_tau)
    return Method(THRESHOLDS, f"τ={tau:.4f}, {gbm_tau:.4f}", patch)


def reached_by(similarity: Tensor, number: int) -> float:
    """What so many of [K] similarities reach, and no rounding makes one more or fewer: half way to the next."""
    return similarity.sort(descending=True).values[number - 1 : number + 1].mean().item() if number else 2.0
