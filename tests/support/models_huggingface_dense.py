"""Small models of transformers for dense prediction."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.support.huggingface_family import SQUARE
from tests.support.models_huggingface import FAMILIES, enliven

STAGES = ["stage1", "stage2", "stage3", "stage5"]
NECK: dict[str, Any] = {"initializer_range": 0.2, "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16}
UPER: dict[str, Any] = {
    "hidden_size": 16,
    "pool_scales": [1, 2],
    "auxiliary_in_channels": 64,
    "auxiliary_channels": 8,
    "num_labels": 3,
    "initializer_range": 0.2,
}


def uper(model: Any, family: str) -> Any:
    """Build UperNet on a backbone of a family."""
    backbone = FAMILIES[family].config(out_features=STAGES)
    return model(transformers.UperNetConfig(backbone_config=backbone, **UPER))


def depth(config: Any, model: Any, **options: Any) -> Any:
    """Build a depth estimator on DINOv2."""
    backbone = FAMILIES["DINOv2"].config(out_features=STAGES, reshape_hidden_states=False)
    return model(config(backbone_config=backbone, **NECK, **options))


def segmenter(model: Any, family: str, image_size: Any) -> Any:
    """Build BEiT's or Data2Vec's own model for segmentation."""
    config = FAMILIES[family].config(
        image_size=image_size, out_indices=[1, 2, 3, 5], num_labels=3, pool_scales=[1, 2], auxiliary_channels=8
    )
    return model(config)


def dpt(model: Any) -> Any:
    """Build a DPT with a ViT of its own."""
    return model(transformers.DPTConfig(**{**SQUARE, **NECK, "num_labels": 3}, backbone_out_indices=[0, 1, 2, 4]))


def sapiens(model: Any) -> Any:
    """Build Sapiens 2 for segmentation."""
    head: dict[str, Any] = {"upsample_out_channels": [16], "upsample_kernel_sizes": [4]}
    convolutions: dict[str, Any] = {"conv_out_channels": [8], "conv_kernel_sizes": [1]}
    return model(FAMILIES["Sapiens 2"].config(head_config={**head, **convolutions}, num_labels=3))


def eomt(model: Any, config: Any, attention: str) -> Any:
    """Build an EoMT, on DINOv2 or DINOv3 by its config."""
    config = config(**SQUARE, num_queries=7, num_blocks=2, num_labels=3, num_upscale_blocks=1)
    config._attn_implementation = attention
    return model(config)


# Older ones divide the size of the image as one number.
SIDES = 96 if "image_size //" in inspect.getsource(transformers.BeitForSemanticSegmentation) else (96, 80)


# The model's class, how to make it, and the grid of patches (square where the head takes no other).
DENSE: dict[str, tuple[str, Any, tuple[int, int]]] = {
    "BEiT": (
        "BeitForSemanticSegmentation",
        lambda model: segmenter(model, "BEiT, bias per layer", SIDES),
        (6, 6) if SIDES == 96 else (6, 5),
    ),
    "Data2Vec": (
        "Data2VecVisionForSemanticSegmentation",
        lambda model: segmenter(model, "Data2Vec, both, eager", 96),
        (6, 6),
    ),
    "DPT, segmentation": ("DPTForSemanticSegmentation", dpt, (6, 6)),
    "DPT, depth": ("DPTForDepthEstimation", dpt, (6, 6)),
    "DPT on DINOv2": (
        "DPTForDepthEstimation",
        lambda model: depth(transformers.DPTConfig, model, is_hybrid=False),
        (6, 6),
    ),
    "Depth Anything": (
        "DepthAnythingForDepthEstimation",
        lambda model: depth(
            transformers.DepthAnythingConfig, model, head_hidden_size=8, patch_size=16, reassemble_hidden_size=64
        ),
        (6, 5),
    ),
    "Sapiens 2": ("Sapiens2ForSemanticSegmentation", sapiens, (6, 5)),
    "UperNet on DINOv2": ("UperNetForSemanticSegmentation", lambda model: uper(model, "DINOv2"), (6, 5)),
    "UperNet on BEiT": ("UperNetForSemanticSegmentation", lambda model: uper(model, "BEiT, shared bias"), (6, 5)),
    "EoMT": (
        "EomtForUniversalSegmentation",
        lambda model: eomt(model, transformers.EomtConfig, "sdpa"),
        (6, 6),
    ),
    "EoMT, eager": (
        "EomtForUniversalSegmentation",
        lambda model: eomt(model, transformers.EomtConfig, "eager"),
        (6, 6),
    ),
    "EoMT on DINOv3": (
        "EomtDinov3ForUniversalSegmentation",
        lambda model: eomt(model, transformers.EomtDinov3Config, "sdpa"),
        (6, 6),
    ),
}
# Older releases do not have them all.
DENSE = {name: kind for name, kind in DENSE.items() if hasattr(transformers, kind[0])}


def make_dense(name: str) -> Any:
    """Build one of DENSE in eval mode, with random weights."""
    cls, make, _ = DENSE[name]
    torch.manual_seed(0)
    return enliven(make(getattr(transformers, cls)))


def prediction(model: nn.Module, image: Tensor) -> Tensor:
    """Return what the head of a dense model predicts, scaled to a standard deviation of 1."""
    output = model(pixel_values=image)
    output = getattr(output, "masks_queries_logits", output[0])
    return output / output.std()
