"""Rows of the table of public projects: semantic segmentation, the paper's four networks first."""

from __future__ import annotations

import sys
from collections import abc
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tests.support import cases_segmenter, models_eva01, models_mmseg
from tests.support.third_party_rows import Built, bare_packages, image, load, row, stubs


class EncoderDecoder(nn.Module):
    """A backbone and the head that reads it, as OpenMMLab's segmentors call them."""

    def __init__(self, backbone: nn.Module, decode_head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head

    def forward(self, x: Tensor) -> Any:
        return self.decode_head(self.backbone(x))


# -- the paper's four networks


@row("segmenter")
def segmenter() -> Built:
    model = cases_segmenter.build("mask")
    return model, lambda: model(image(96, 80))


@row("segmenter")
def segmenter_linear() -> Built:
    model = cases_segmenter.build("linear")
    return model, lambda: model(image(96, 80))


def setr(backbone: str, head: str) -> tuple[Any, Any]:
    """Return the modules with a backbone and a head of SETR's authors, who have mmseg 0.6 beside them."""
    sys.modules.setdefault("mmcv._ext", models_mmseg.CompiledOps("mmcv._ext"))
    bare_packages("mmseg", "mmseg.models", "mmseg.models.backbones", "mmseg.models.decode_heads")
    with stubs(torch___six={"container_abcs": abc}, mmseg__core={"build_pixel_sampler": None}):
        return load(f"mmseg.models.backbones.{backbone}"), load(f"mmseg.models.decode_heads.{head}")


@row("SETR", "SETR", "mmcv1")
def setr_pup() -> Built:
    backbones, heads = setr("vit", "vit_up_head")
    backbone = backbones.VisionTransformer(img_size=(96, 96), embed_dim=64, depth=8, num_heads=4, random_init=True)
    up = {"num_conv": 4, "num_upsampe_layer": 4, "img_size": 96, "embed_dim": 64, "norm_cfg": {"type": "BN"}}
    head = heads.VisionTransformerUpHead(in_channels=64, channels=64, in_index=7, num_classes=3, **up)
    model = EncoderDecoder(backbone, head)
    return model, lambda: model(image(96, 96))


@row("SETR", "SETR", "mmcv1")
def setr_mla() -> Built:
    backbones, heads = setr("vit_mla", "vit_mla_head")
    norm: dict[str, Any] = {"norm_cfg": {"type": "BN"}}
    size = {"img_size": 96, "embed_dim": 64, "depth": 8, "num_heads": 4}
    backbone = backbones.VIT_MLA(**size, mla_channels=32, mla_index=(1, 3, 5, 7), **norm)
    model = EncoderDecoder(backbone, heads.VIT_MLAHead(96, 32, 16, in_channels=64, channels=64, num_classes=3, **norm))
    return model, lambda: model(image(96, 96))


@row("SegVit", "SegVit", "mmcv1", "mmseg0")
def segvit_shrunk() -> Built:
    sys.modules.setdefault("mmcv._ext", models_mmseg.CompiledOps("mmcv._ext"))
    bare_packages("decode_heads", "losses", "backbone")
    size = {"img_size": (96, 96), "embed_dims": 64, "num_layers": 5, "num_heads": 4, "with_cls_token": False}
    backbone = load("backbone.vit_shrink").vit_shrink(shrink_idx=2, out_indices=[1, 4], **size)
    load("losses.atm_loss")
    loss = {"type": "ATMLoss", "num_classes": 3, "dec_layers": 3}
    head = load("decode_heads.tpn_atm_head").TPNATMHead(
        96, 64, embed_dims=64, num_layers=2, num_heads=4, use_stages=2, num_classes=3, channels=64, loss_decode=loss
    )
    model = EncoderDecoder(backbone, head)
    return model, lambda: model(image(96, 96))


@row("SegVit", "SegVit", "mmcv1", "mmseg0")
def segvit() -> Built:
    sys.modules.setdefault("mmcv._ext", models_mmseg.CompiledOps("mmcv._ext"))
    bare_packages("decode_heads", "losses")
    size = {"img_size": (96, 96), "embed_dims": 64, "num_layers": 6, "num_heads": 4, "with_cls_token": False}
    backbone = load("mmseg.models.backbones").VisionTransformer(out_indices=[1, 3, 5], **size)
    load("losses.atm_loss")
    loss = {"type": "ATMLoss", "num_classes": 3, "dec_layers": 3}
    head = load("decode_heads.atm_head").ATMHead(
        96, 64, embed_dims=64, num_layers=2, num_heads=4, use_stages=3, num_classes=3, channels=64, loss_decode=loss
    )
    model = EncoderDecoder(backbone, head)
    return model, lambda: model(image(96, 96))


def token_pruning_head(**options: Any) -> Any:
    """Return SegViT's ATM head for mmseg 1."""
    bare_packages("mmseg_custom", "mmseg_custom.decode_heads")
    load("mmseg_custom.loss")
    loss = {"type": "ATMLoss", "num_classes": 3, "dec_layers": 3}
    size = {"embed_dims": 64, "num_layers": 2, "num_heads": 4, "num_classes": 3, "channels": 64}
    return load("mmseg_custom.decode_heads.atm_head").ATMHead(96, 64, loss_decode=loss, **size, **options)


@row("Dynamic-Token-Pruning")
def segvit_mmseg1() -> Built:
    backbone = models_mmseg.mmseg().backbones.VisionTransformer(
        img_size=96, embed_dims=64, num_layers=6, num_heads=4, out_indices=[1, 3, 5]
    )
    model = EncoderDecoder(backbone, token_pruning_head(use_stages=3))
    return model, lambda: model(image(96, 96))


def eva01(name: str) -> Built:
    """Return one of the models of EVA-01's segmentation code."""
    model = models_eva01.build(name)
    return model, lambda: model(models_eva01.image_of(name))


@row("EVA", "EVA/EVA-01/seg")
def eva01_beit() -> Built:
    return eva01("BEiTBaseline, both biases")


@row("EVA", "EVA/EVA-01/seg")
def eva01_beit_adapter() -> Built:
    return eva01("BEiTAdapter")


@row("EVA", "EVA/EVA-01/seg")
def eva01_vit_adapter() -> Built:
    return eva01("ViTAdapter")


# -- others


@row("ViT-Adapter", "ViT-Adapter/segmentation", "ViT-Adapter/detection")
def vit_adapter() -> Built:
    adapter = models_eva01.import_backbones(Path.cwd()).ViTAdapter
    options = {**models_eva01.ADAPTER, "pretrain_size": 96, "img_size": 96, "embed_dim": 64, "num_heads": 4, "depth": 5}
    model = adapter(**options)
    return model, lambda: model(image(96, 64))


@row("ViT-Adapter", "ViT-Adapter/segmentation", "ViT-Adapter/detection")
def vit_adapter_beit() -> Built:
    adapter = models_eva01.import_backbones(Path.cwd()).BEiTAdapter
    options = {**models_eva01.ADAPTER, "img_size": 96, "embed_dim": 64, "num_heads": 4, "depth": 5}
    model = adapter(use_rel_pos_bias=True, qkv_bias=True, init_values=0.5, **options)
    return model, lambda: model(image(96, 96))


@row("eomt")
def eomt() -> Built:
    bare_packages("models")
    encoder = load("models.vit").ViT((96, 96), 16, "vit_tiny_patch16_224", ckpt_path="none")
    model = load("models.eomt").EoMT(encoder, 3, 10, num_blocks=3)
    return model, lambda: model(image(96, 96))


@row("eomt")
def eomt_without_masks() -> Built:
    bare_packages("models")
    encoder = load("models.vit").ViT((96, 96), 16, "vit_tiny_patch16_224", ckpt_path="none")
    model = load("models.eomt").EoMT(encoder, 3, 10, num_blocks=3, masked_attn_enabled=False)
    return model, lambda: model(image(96, 96))
