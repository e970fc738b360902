"""Blocks of public projects, of their own code, in a small model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tests.support import models
from tests.support.attention_of_positions import HEAD, HEADS, WIDTH
from tests.support.cases_segmenter import with_random_weights
from tests.support.contract import Case
from tests.support.models_of_positions import Vit
from tests.support.third_party import third_party

DINO: dict[str, Any] = {"qkv_bias": True, "init_values": 0.1}


def dinov3() -> nn.Module:
    """Return the block of facebookresearch/dinov3."""
    third_party("dinov3")
    block = import_module("dinov3.layers.block").SelfAttentionBlock(WIDTH, HEADS, mask_k_bias=True, **DINO)
    block.attn.qkv.bias_mask.fill_(1)  # these are filled when the whole model is initialized
    block.ls1.reset_parameters()
    block.ls2.reset_parameters()
    return block


def croco() -> nn.Module:
    """Return the block of naver/croco, whose package is called models."""
    blocks, positions = (file_of("croco", f"models/{name}.py") for name in ("blocks", "pos_embed"))
    return blocks.Block(WIDTH, HEADS, qkv_bias=True, rope=positions.RoPE2D(100.0))


def vggt() -> nn.Module:
    """Return the block of facebookresearch/vggt."""
    third_party("vggt")
    rope = import_module("vggt.layers.rope").RotaryPositionEmbedding2D(100)
    return import_module("vggt.layers.block").Block(WIDTH, HEADS, qk_norm=True, rope=rope, **DINO)


def depth_anything_3() -> nn.Module:
    """Return the block of ByteDance-Seed/Depth-Anything-3, without the packages that its own imports."""
    layers = package_at("Depth-Anything-3", "src/depth_anything_3/model/dinov2/layers")
    rope = import_module(f"{layers}.rope").RotaryPositionEmbedding2D(100.0)
    return import_module(f"{layers}.block").Block(WIDTH, HEADS, qk_norm=True, rope=rope, **DINO)


def pi3() -> nn.Module:
    """Return the block of yyfz/Pi3."""
    third_party("Pi3")
    rope = import_module("pi3.models.layers.pos_embed").RoPE2D(100.0)
    attention = import_module("pi3.models.layers.attention").FlashAttentionRope
    options = {"qk_norm": True, "rope": rope, "attn_class": attention, **DINO}
    return import_module("pi3.models.layers.block").BlockRope(WIDTH, HEADS, **options)


def eva_clip() -> nn.Module:
    """Return the block of EVA-CLIP, whose attention holds its rotary embedding."""
    third_party("EVA/EVA-CLIP/rei")
    rope = import_module("eva_clip.rope").VisionRotaryEmbeddingFast(HEAD // 2, pt_seq_len=6)
    options = {"qkv_bias": True, "subln": True, "naiveswiglu": True, "norm_layer": nn.LayerNorm}
    return import_module("eva_clip.eva_vit_model").Block(WIDTH, HEADS, rope=rope, **options)


def file_of(project: str, path: str) -> Any:
    """Return a file of a checkout as a module that no other project's is taken for."""
    name = f"{project}_{path.replace('/', '_').removesuffix('.py')}"
    spec = spec_from_file_location(name, third_party(project) / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_at(project: str, path: str) -> str:
    """Make a folder of a checkout a package of its own, and return its name."""
    name = f"{project}_{path}".replace("-", "_").replace("/", "_")
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [str(third_party(project) / path)]
    return name


# The blocks, what they take, and the grid that theirs is made for.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, int]]] = {
    "DINOv3": (dinov3, "rope", models.GRID),
    "CroCo": (croco, "xpos", models.GRID),
    "VGGT": (vggt, "pos", models.GRID),
    "Depth Anything 3": (depth_anything_3, "pos", models.GRID),
    "Pi3": (pi3, "xpos", models.GRID),
    "EVA-CLIP": (eva_clip, "", (6, 6)),
}


def build(name: str, depth: int = 5) -> Any:
    """Build a model of blocks of one of BLOCKS, in eval mode, with random weights."""
    block, takes, grid = BLOCKS[name]
    torch.manual_seed(0)
    return with_random_weights(Vit([block() for _ in range(depth)], takes, grid)).eval()


def case(name: str) -> Case:
    """Return the case of one of BLOCKS."""
    return Case(
        build=lambda: build(name),
        image=lambda: models.photo(grid=BLOCKS[name][2]),
        tokens=lambda model, image: model(image),
        position_inputs=lambda length: {},
    )


CASES = {f"vendored, {name}": case(name) for name in BLOCKS}
