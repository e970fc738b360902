"""Rows of the table of public projects: mmpretrain's ViTs, and what finds keypoints, cells and masks."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

from tests.support.models_mmseg import CompiledOps
from tests.support.third_party_rows import Built, bare_packages, image, load, row, stubs


def mmpretrain_packages() -> None:
    """Make mmpretrain importable on mmcv without compiled ops, and without its data sets and language models."""
    sys.modules.setdefault("mmcv._ext", CompiledOps("mmcv._ext"))
    bare_packages("mmpretrain", "mmpretrain.models")


def mmpretrain(name: str, **options: Any) -> Built:
    """Return one of mmpretrain's backbones."""
    mmpretrain_packages()
    arch = {"embed_dims": 64, "num_layers": 5, "num_heads": 4, "feedforward_channels": 128}
    backbone = getattr(load("mmpretrain.models.backbones"), name)
    model = backbone(arch=arch, img_size=(80, 96), patch_size=16, out_type="featmap", out_indices=[1, 4], **options)
    return model, lambda: model(image(80, 96))


@row("mmpretrain")
def mmpretrain_vit() -> Built:
    return mmpretrain("VisionTransformer")


@row("mmpretrain")
def mmpretrain_beit() -> Built:
    return mmpretrain("BEiTViT", layer_scale_init_value=0.5)


@row("mmpretrain")
def mmpretrain_deit() -> Built:
    return mmpretrain("DistilledVisionTransformer")


@row("mmpretrain")
def mmpretrain_deit3() -> Built:
    return mmpretrain("DeiT3")


@row("mmpretrain")
def mmpretrain_eva02() -> Built:
    return mmpretrain("ViTEVA02", sub_ln=True)


@row("mmpretrain")
def mmpretrain_sam() -> Built:
    mmpretrain_packages()
    arch = {"embed_dims": 64, "num_layers": 5, "num_heads": 4, "feedforward_channels": 128, "global_attn_indexes": [4]}
    model = load("mmpretrain.models.backbones").ViTSAM(arch, img_size=96, patch_size=16, out_channels=16, window_size=3)
    return model, lambda: model(image(96, 96))


# -- keypoints, cells, masks


@row("ViTPose", "ViTPose", "mmcv1")
def vitpose() -> Built:
    bare_packages("mmpose", "mmpose.models", "mmpose.models.backbones")
    vit = load("mmpose.models.backbones.vit").ViT
    model = vit((96, 80), 16, embed_dim=64, depth=5, num_heads=4, qkv_bias=True)
    return model, lambda: model(image(96, 80))


def load_lightning_pose(name: str) -> Any:
    """Return a module of lightning-pose's models, imported without what reads and augments its data."""
    bare_packages("lightning_pose")
    with stubs(
        imgaug={},
        imgaug__augmenters={"Sequential": object},
        imgaug__augmenters__size={},
        imgaug__augmentables={"Keypoint": object},
        aniposelib={},
        aniposelib__cameras={"CameraGroup": object},
    ):
        return load(f"lightning_pose.models.{name}")


def lightning_pose_encoder(model: Any) -> Any:
    """Return a context in which transformers' models come with random weights and not from the hub."""
    return mock.patch("transformers.AutoModel.from_pretrained", return_value=model)


def dinov2_of_transformers() -> Any:
    transformers = load("transformers")
    size = {"hidden_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4}
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=96, patch_size=16, **size))


@row("lightning-pose")
def lightning_pose() -> Built:
    module = load_lightning_pose("heatmap_tracker")
    with lightning_pose_encoder(dinov2_of_transformers()):
        model = module.HeatmapTracker(2, backbone="vits_dinov2", pretrained=False, image_size=96)
    return model, lambda: model(image(96, 96))


@row("lightning-pose")
def lightning_pose_views() -> Built:
    module = load_lightning_pose("heatmap_tracker_multiview")
    with lightning_pose_encoder(dinov2_of_transformers()):
        model = module.HeatmapTrackerMultiviewTransformer(2, 3, backbone="vits_dinov2", pretrained=False, image_size=96)
    return model, lambda: model(image(96, 96, batch=6).unflatten(0, (2, 3)))


@row("cellpose", "cellpose", "segment-anything")
def cellpose_sam() -> Built:
    bare_packages("cellpose")
    model = load("cellpose.vit_sam").Transformer(backbone="vit_b", bsize=64)
    return model, lambda: model(image(64, 64, batch=1))


@row("segment-anything")
def segment_anything() -> Built:
    vit = load("segment_anything.modeling").ImageEncoderViT
    size = {"embed_dim": 64, "depth": 5, "num_heads": 4, "out_chans": 16}
    model = vit(96, 16, **size, use_rel_pos=True, window_size=3, global_attn_indexes=(1, 4))
    return model, lambda: model(image(96, 96))
