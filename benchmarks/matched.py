"""Networks of the sizes that ALGM was published for, and methods that cost them equally many FLOPs. Used by gpu.py."""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import timm
import torch
from batches import pictures, prepared
from peers import Method
from PIL import Image
from torch import Tensor, nn

from algm_patch.calibrate import similarities

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


def flops(model: Any, left: Mapping[int, int]) -> float:
    """Of an image, multiply and add counted apart. Of the method: what a kernel computes besides does not count.

    Args:
        left: tokens after the attention of a layer (from 1), and from there on.
    """
    width, hidden = model.embed_dim, model.blocks[0].mlp.fc1.out_features
    total = 2 * model.patch_embed.num_patches * model.patch_embed.proj.weight.numel()
    tokens = full_length(model)
    for layer in range(1, len(model.blocks) + 1):
        total += 8 * tokens * width**2 + 4 * tokens**2 * width
        tokens = left.get(layer, tokens)
        total += 4 * tokens * width * hidden
    return total


def full_length(model: Any) -> int:
    return model.num_prefix_tokens + model.patch_embed.num_patches


def algm_left(model: Any, network: Network, kept: tuple[int, int]) -> dict[int, int]:
    """Tokens after CLAP and after GBM, which keep so many patches."""
    return {1: model.num_prefix_tokens + kept[0], network.gbm_layer: model.num_prefix_tokens + kept[1]}


def tome_left(model: Any, r: int) -> dict[int, int]:
    return {layer: full_length(model) - layer * r for layer in range(1, len(model.blocks) + 1)}


def algm_kept(model: Any, network: Network) -> tuple[int, int]:
    """Patches after CLAP and after GBM, so that FLOPs fall as published."""
    high, wide = model.patch_embed.grid_size
    aim = network.published * flops(model, {})

    def kept(windows: int) -> tuple[int, int]:
        after_clap = high * wide - 3 * windows
        return after_clap, round(GBM_KEEPS * after_clap)

    windows = range((high // 2) * (wide // 2) + 1)
    return kept(min(windows, key=lambda n: abs(flops(model, algm_left(model, network, kept(n))) - aim)))


def tome_r(model: Any, network: Network) -> int:
    """Tokens that ToMe merges in every layer, so that FLOPs fall as published."""
    aim = network.published * flops(model, {})
    most = full_length(model) // (len(model.blocks) + 1)  # in the last layer every other token can still propose
    return min(range(1, most), key=lambda r: abs(flops(model, tome_left(model, r)) - aim))


# -- methods


def method(name: str, model: Any, network: Network, images: Tensor) -> tuple[Method, float]:
    """How the model runs, and the FLOPs of an image, on average over these."""
    if name == UNPATCHED:
        return peers.unpatched(), flops(model, {})
    if name == TOME:
        r = tome_r(model, network)
        return Method(name, f"r={r}", partial(peers.tome, r=r)), flops(model, tome_left(model, r))
    kept = algm_kept(model, network)
    if name == THRESHOLDS:
        return by_thresholds(model, network, images, kept)
    settings = {"tokens": list(kept), "gbm_layers": [network.gbm_layer], "proportional_attention": name == FIXED}
    setting = " -> ".join(map(str, (model.patch_embed.num_patches, *kept)))
    return Method(name, setting, partial(peers.algm, **settings)), flops(model, algm_left(model, network, kept))


def by_thresholds(model: Any, network: Network, images: Tensor, kept: tuple[int, int]) -> tuple[Method, float]:
    """Thresholds that as many windows and proposals of all images reach as fixed counts would merge."""
    layer, run = network.gbm_layer, partial(model, images)
    with peers.algm(model, gbm_layers=[]):
        (windows,) = similarities(model, "CLAP", [1], run)
    tau = reached_by(windows, (model.patch_embed.num_patches - kept[0]) // 3 * len(images))
    with peers.algm(model, gbm_layers=[layer], tau=tau):
        (proposals,) = similarities(model, "GBM", [layer], run)
    gbm_tau = reached_by(proposals, (kept[0] - kept[1]) * len(images))
    left = []
    for layers in ([], [layer]):
        with peers.algm(model, gbm_layers=layers, tau=tau, gbm_tau=gbm_tau):
            run()
            left.append((model.algm.token_map.sizes > 0).sum(1).tolist())
    each = [flops(model, {1: clap, layer: gbm}) for clap, gbm in zip(*left, strict=True)]
    patch = partial(peers.algm, gbm_layers=[layer], tau=tau, gbm_tau=gbm_tau)
    return Method(THRESHOLDS, f"τ={tau:.4f}, {gbm_tau:.4f}", patch), statistics.mean(each)


def reached_by(similarity: Tensor, number: int) -> float:
    """What so many of [K] similarities reach, and no rounding makes one more or fewer: half way to the next."""
    return similarity.sort(descending=True).values[number - 1 : number + 1].mean().item() if number else 2.0
