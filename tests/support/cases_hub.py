"""Models of torch.hub's DINOv2 and open_clip."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import models
from tests.support.cases_segmenter import with_random_weights
from tests.support.contract import Case
from tests.support.third_party import third_party


def dino(depth: int = 5, **options: Any) -> Any:
    """Build a DinoVisionTransformer as torch.hub does, in eval mode, with random weights; 14 pixels a token."""
    third_party("dinov2")
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer

    torch.manual_seed(0)
    options = {
        "img_size": 70,
        "patch_size": 14,
        "embed_dim": 64,
        "depth": depth,
        "num_heads": 4,
        "mlp_ratio": 2,
        "init_values": 0.1,
        "block_chunks": 0,
        "block_fn": partial(NestedTensorBlock, attn_class=MemEffAttention),
        **options,
    }
    return with_random_weights(DinoVisionTransformer(**options)).eval()


def plain_blocks() -> dict[str, Any]:
    """Return the options of a model without nested tensors."""
    third_party("dinov2")
    from dinov2.layers.block import Block

    return {"block_fn": Block}


DINOS: dict[str, Callable[[], dict[str, Any]]] = {
    "DINOv2": dict,
    "DINOv2, 4 registers": lambda: {"num_register_tokens": 4},
    "DINOv2, SwiGLU": lambda: {"ffn_layer": "swiglufused"},
    "DINOv2, no layer scale": lambda: {"init_values": None},
    "DINOv2, one chunk": lambda: {"block_chunks": 1},
    "DINOv2, plain blocks": plain_blocks,
}


def clip(grid: tuple[int, int] = models.GRID, depth: int = 5, **options: Any) -> Any:
    """Build an open_clip VisionTransformer in eval mode, with random weights; 16 pixels a token."""
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    size = {"image_size": (grid[0] * 16, grid[1] * 16), "patch_size": 16, "width": 64, "layers": depth, "heads": 4}
    return with_random_weights(transformer.VisionTransformer(**size, mlp_ratio=2.0, output_dim=32, **options)).eval()


CLIPS: dict[str, dict[str, Any]] = {
    "open_clip": {},
    "open_clip, layer scale": {"ls_init_value": 0.1},
    "open_clip, custom blocks": {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "ls_init_value": 0.1},
    "open_clip, scaled attention": {"scale_attn": True, "scale_fc": True},
}


def mask(length: int) -> dict[str, Tensor]:
    """Return a mask of pairs of tokens, as an argument of open_clip's transformer."""
    return {"attn_mask": torch.randn(length, length, generator=torch.Generator().manual_seed(1))}


def dino_case(options: Callable[[], dict[str, Any]]) -> Case:
    """Return the case of one of DINOS."""
    return Case(
        build=lambda: dino(**options()),
        image=lambda: models.photo("DINOv2"),
        tokens=lambda model, image: model.forward_features(image)["x_prenorm"],
        position_inputs=lambda length: {},
    )


def clip_case(options: dict[str, Any]) -> Case:
    """Return the case of one of CLIPS."""
    return Case(
        build=lambda: clip(**options),
        image=models.photo,
        tokens=lambda model, image, **inputs: model.transformer(model._embeds(image), **inputs),
        position_inputs=mask,
    )


CASES = {
    **{f"hub {name}": dino_case(options) for name, options in DINOS.items()},
    **{name: clip_case(options) for name, options in CLIPS.items()},
}
