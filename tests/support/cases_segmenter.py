"""Models of Segmenter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support import models
from tests.support.contract import SETTINGS, Case
from tests.support.third_party import third_party

CLASSES = 7


def build(decoder: str, grid: tuple[int, int] = models.GRID, depth: int = 5, width: int = 64, **options: Any) -> Any:
    """Build a Segmenter in eval mode, with random weights; its images have 16 pixels a token."""
    third_party("segmenter")
    from segm.model import decoder as decoders
    from segm.model.segmenter import Segmenter
    from segm.model.vit import VisionTransformer

    torch.manual_seed(0)
    size = {"n_heads": 4, "d_model": width, "d_ff": 2 * width}
    drop = {"dropout": options.pop("dropout", 0.0), "drop_path_rate": options.pop("drop_path_rate", 0.0)}
    patch = options.pop("patch_size", 16)
    image = (grid[0] * patch, grid[1] * patch)
    encoder = VisionTransformer(image, patch, depth, n_cls=10, **size, **drop, **options)
    head = (
        decoders.DecoderLinear(CLASSES, patch, width)
        if decoder == "linear"
        else decoders.MaskTransformer(CLASSES, patch, width, 2, **size, **drop)
    )
    return with_random_weights(Segmenter(encoder, head, CLASSES)).eval()


def with_random_weights(model: nn.Module) -> nn.Module:
    """Make every parameter so large that leaving it out would show."""
    for parameter in model.parameters():
        vector = parameter.dim() == 1 or parameter.shape[:-1].numel() == 1
        nn.init.normal_(parameter, parameter.detach().mean().item() if vector else 0.0, 0.2 if vector else 0.1)
    return model


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask transformer": ("mask", {}),
    "linear decoder": ("linear", {}),
    "distillation token": ("mask", {"distilled": True}),
}

# Both merges, and a decoder that runs on what they leave.
AFTER_HEAD: dict[str, Any] = {**SETTINGS, "unmerge_at": "after_head"}


def build_kind(kind: str) -> Any:
    """Build one of KINDS."""
    decoder, options = KINDS[kind]
    return build(decoder, **options)


def case(kind: str) -> Case:
    """Return the case of one of KINDS."""
    return Case(
        build=lambda: build_kind(kind),
        image=models.photo,
        tokens=lambda model, image: model.encoder(image, return_features=True),
        position_inputs=lambda length: {},
    )


CASES = {f"Segmenter {kind}": case(kind) for kind in KINDS}
