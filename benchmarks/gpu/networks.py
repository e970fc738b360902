"""Define networks of the sizes that ALGM was published for, and how many tokens save as many FLOPs as published."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from algm_patch.patching.find_vit import find_vit
from algm_patch.report.cost import VitCost, vit_cost

from ..common.gflops import operations_by_layer
from ..common.images import eight_pictures, model_input

# Share of CLAP's patches that GBM leaves, as with the authors' threshold in benchmarks/results/overhead_cpu.txt.
GBM_LEAVES = 0.7


@dataclass(frozen=True)
class Network:
    """Hold what a network is.

    Attributes:
        model: its name in timm.
        size: side of the image in pixels.
        gbm_layer: the published layer of GBM.
        published: GFLOPs with ALGM divided by those without.
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


def build(network: Network, device: str, dtype: torch.dtype) -> Any:
    """Return the network with random weights; it gives back all tokens [B, P+N, D]."""
    torch.manual_seed(0)
    with torch.device(device):
        model = timm.create_model(network.model, img_size=network.size, num_classes=0, global_pool="")
    return model.eval().to(device, dtype)


def photographs(model: nn.Module, network: Network, count: int) -> Tensor:
    """Return parts of photographs [count, 3, H, W], all different, on the model's device and in its dtype."""
    draw, pictures = random.Random(0), eight_pictures()
    parts = [random_part(pictures[i % len(pictures)], draw) for i in range(count)]
    return torch.cat([model_input(part, model, network.size) for part in parts])


def random_part(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Return a random square of a picture."""
    side = int(min(picture.size) * draw.uniform(0.5, 1))
    left, top = (draw.randint(0, length - side) for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


# -- tokens and FLOPs


@dataclass(frozen=True)
class Flops:
    """Tell the operations for an image of an unpatched model, as a function of the tokens in each layer."""

    model: Any
    cost: VitCost

    @classmethod
    def of_model(cls, model: Any) -> Flops:
        """Return those of a model of timm."""
        return cls(model, vit_cost(*find_vit(model), model.patch_embed.grid_size))

    def unpatched(self) -> int:
        """Return the operations without merging."""
        return self._by_layer({}, {})

    def algm(self, network: Network, left: tuple[int, int]) -> int:
        """Return the operations of ALGM that leaves so many patches after CLAP and after GBM."""
        prefix = self.model.num_prefix_tokens
        tokens = {1: prefix + left[0], network.gbm_layer: prefix + left[1]}
        return self._by_layer(tokens, {network.gbm_layer: self.model.embed_dim})

    def tome(self, r: int) -> int:
        """Return the operations of ToMe that merges r tokens in every layer."""
        layers = range(1, len(self.model.blocks) + 1)
        tokens = {layer: full_length(self.model) - layer * r for layer in layers}
        return self._by_layer(tokens, dict.fromkeys(layers, self.model.blocks[0].attn.head_dim))

    def _by_layer(self, left: dict[int, int], compared: dict[int, int]) -> int:
        return operations_by_layer(self.cost, full_length(self.model), self.model.num_prefix_tokens, left, compared)


def full_length(model: Any) -> int:
    """Return the tokens of an image, prefix included."""
    length: int = model.num_prefix_tokens + model.patch_embed.num_patches
    return length


def patches_left(model: Any, network: Network) -> tuple[int, int]:
    """Return the patches after CLAP and after GBM with which FLOPs fall as published."""
    height, width = model.patch_embed.grid_size
    flops = Flops.of_model(model)
    aim = network.published * flops.unpatched()

    def left(windows: int) -> tuple[int, int]:
        after_clap = height * width - 3 * windows
        return after_clap, round(GBM_LEAVES * after_clap)

    windows = range((height // 2) * (width // 2) + 1)
    return left(min(windows, key=lambda n: abs(flops.algm(network, left(n)) - aim)))


def tome_r(model: Any, network: Network) -> int:
    """Return the tokens that ToMe merges in every layer for FLOPs to fall as published."""
    flops = Flops.of_model(model)
    aim = network.published * flops.unpatched()
    most = full_length(model) // (len(model.blocks) + 1)  # in the last layer every other token can still propose
    return min(range(1, most), key=lambda r: abs(flops.tome(r) - aim))
