"""Small models of mmsegmentation."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import GRID

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("VisionTransformer", {}),
    "ViT, all norms": ("VisionTransformer", {"pre_norm": True, "final_norm": True, "patch_norm": True}),
    "ViT, no class token": ("VisionTransformer", {"with_cls_token": False}),
    "BEiT": ("BEiT", {}),
    "MAE": ("MAE", {}),
}

# The segmentors of the SETR and Segmenter papers, by the name of their config in mmsegmentation.
SEGMENTORS = ["setr_naive", "setr_pup", "setr_mla", "segmenter_vit-b16_mask"]


class CompiledOps(ModuleType):
    """Stands for mmcv's compiled ops: mmcv-lite has none, and a ViT needs none."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: pytest.fail(f"the compiled op {name} ran")


def mmseg() -> Any:
    """Return the module mmseg.models, or skip the test."""
    sys.modules.setdefault("mmcv._ext", CompiledOps("mmcv._ext"))
    pytest.importorskip("mmseg")
    return pytest.importorskip("mmseg.models")


def backbone(family: str, depth: int = 5, **options: Any) -> Any:
    """Build a backbone in eval mode: narrow, of few blocks, with random weights."""
    name, extra = BACKBONES[family]
    torch.manual_seed(0)
    image = (GRID[0] * 16, GRID[1] * 16)
    shape = {"img_size": image, "embed_dims": 64, "num_layers": depth, "num_heads": 4}
    return with_random_weights(getattr(mmseg().backbones, name)(**shape, **extra, **options))


def segmentor(name: str) -> Any:
    """Build a segmentor by its own config, made small: 3 classes, backbone of width 64 and 8 blocks."""
    models = mmseg()
    from mmengine import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")
    place = Path(models.__file__).parents[1] / ".mim/configs/_base_/models" / f"{name}.py"
    config = Config.fromfile(place).model
    config.update(pretrained=None, data_preprocessor={"type": "SegDataPreProcessor"})
    config.backbone.update(img_size=(GRID[0] * 16, GRID[1] * 16), embed_dims=64, num_layers=8, num_heads=4)
    config.backbone.update(drop_rate=0.0, drop_path_rate=0.0)
    if "out_indices" in config.backbone:
        config.backbone.out_indices = (1, 3, 5, 7)
    for head in (config.decode_head, *config.get("auxiliary_head", [])):
        head.num_classes = 3
        if "neck" in config:
            config.neck.in_channels = [64] * 4
        else:
            head.update(in_channels=64, channels=64)
    if config.decode_head.type == "SegmenterMaskTransformerHead":
        config.decode_head.update(embed_dims=64, num_heads=4)
        config.test_cfg.update(crop_size=(96, 80), stride=(64, 64))
    torch.manual_seed(0)
    return with_random_weights(models.build_segmentor(config))


def with_random_weights(model: Any) -> Any:
    """Set the model to eval mode and give random values to the parameters that are zero before training."""
    for parameter in model.parameters():
        if parameter.dim() == 1 or parameter.shape[:-1].numel() == 1 or not parameter.any():
            nn.init.normal_(parameter, parameter.detach().mean().item(), 0.2)
    model.eval()
    return model


def last_tokens(model: Any, image: Tensor) -> Tensor:
    """Return the tokens [B, P+N, D] that the last block leaves."""
    blocks = model.layers if hasattr(model, "layers") else model.blocks
    outputs = []
    hook = blocks[-1].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        model(image)
    finally:
        hook.remove()
    return outputs[-1]
