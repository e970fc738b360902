"""Small models of the EVA-01 segmentation code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.models import GRID, photo
from tests.support.models_mmseg import with_random_weights
from tests.support.third_party import third_party

SEG = "EVA/EVA-01/seg"
EVEN_GRID = (6, 4)  # the adapters halve the grid
ADAPTER = {"interaction_indexes": [[0, 0], [1, 1], [2, 3], [4, 4]], "conv_inplane": 16, "deform_num_heads": 4}
LEVELS = {"out_indices": [1, 2, 3, 4]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BEiTBaseline, bias in each block": (
        "BEiTBaseline",
        {"use_rel_pos_bias": True, "qkv_bias": True, "init_values": 0.5, **LEVELS},
    ),
    "BEiTBaseline, shared bias": (
        "BEiTBaseline",
        {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": False, "qk_scale": 0.5, **LEVELS},
    ),
    "BEiTBaseline, both biases": (
        "BEiTBaseline",
        {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": True, **LEVELS},
    ),
    "BEiTAdapter": ("BEiTAdapter", {"use_abs_pos_emb": True, "qkv_bias": True, "init_values": 0.5, **ADAPTER}),
    "ViTBaseline": ("ViTBaseline", {"pretrain_size": 96, "img_size": 96, "depth": 4}),
    "ViTAdapter": ("ViTAdapter", {"pretrain_size": 96, "img_size": 96, "layer_scale": False, **ADAPTER}),
}
BASELINES = [model for model in MODELS if model.startswith("BEiTBaseline")]
ADAPTERS = [model for model in MODELS if model.endswith("Adapter")]


def build(model: str, **options: Any) -> Any:
    """Build one of MODELS in eval mode: narrow, of few blocks, with random weights."""
    name, extra = MODELS[model]
    height, width = grid_of(model)
    shape = {"img_size": (16 * height, 16 * width), "embed_dim": 64, "num_heads": 4, "depth": 5}
    torch.manual_seed(0)
    built = getattr(backbones(), name)(**{**shape, **extra, **options})
    return with_random_weights(built)


def grid_of(model: str) -> tuple[int, int]:
    """Return the grid of patches of one of MODELS."""
    return EVEN_GRID if model.endswith("Adapter") else GRID


def image_of(model: str) -> Tensor:
    """Return images for one of MODELS."""
    return photo(grid=grid_of(model))


def backbones() -> Any:
    """Return the module mmseg_custom.models.backbones, or skip the test."""
    return import_backbones(third_party(SEG))


@cache
def import_backbones(seg: Path) -> Any:
    for name in ("mmseg_custom", "mmseg_custom.models"):  # without what they import: data sets, heads
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(seg.joinpath(*name.split(".")))]
    with old_libraries():
        found = import_module("mmseg_custom.models.backbones")
        deformable = import_module("ops.modules.ms_deform_attn")
        plain = import_module("ops.functions.ms_deform_attn_func").ms_deform_attn_core_pytorch
    vars(deformable)["MSDeformAttnFunction"] = SimpleNamespace(  # in place of the compiled op
        apply=lambda value, shapes, starts, locations, weights, step: plain(value, shapes, locations.to(value), weights)
    )
    return found


@contextmanager
def old_libraries() -> Iterator[None]:
    """Make importable, for a while, the names that this code imports from mmcv 1, mmseg 0 and its compiled op."""
    registry = SimpleNamespace(register_module=lambda **options: lambda cls: cls)
    stubs: dict[str, dict[str, Any]] = {
        "mmcv": {},
        "mmcv.runner": {"BaseModule": nn.Module, "load_checkpoint": None},
        "mmcv_custom": {"load_checkpoint": None, "my_load_checkpoint": None},
        "mmseg": {},
        "mmseg.models": {},
        "mmseg.models.builder": {"BACKBONES": registry},
        "mmseg.utils": {"get_root_logger": None},
        "MultiScaleDeformableAttention": {},
    }
    before = {name: sys.modules.pop(name) for name in stubs if name in sys.modules}
    for name, attributes in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]
        sys.modules.update(before)


def outputs_one_by_one(model: Any, image: Tensor, between: Any = lambda x: x) -> list[Tensor]:
    """Run a BEiT's blocks in a loop of our own, ``between`` on the input of each. Return what each block leaves."""
    x, *grid = model.patch_embed(image)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
    x = x if model.pos_embed is None else x + model.pos_embed
    bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
    sizes = grid if len(grid) == 2 else []
    outputs = []
    for block in model.blocks:
        x = block(between(x), *sizes, bias)
        outputs.append(x)
    return outputs
