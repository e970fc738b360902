"""Rows of the table of public projects: depth, matching and reconstruction."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from tests.support.third_party_rows import Built, image, load, row

DPT: dict[str, Any] = {"features": 32, "out_channels": [24, 32, 48, 48]}


@row("Depth-Anything")
def depth_anything() -> Built:
    model = load("depth_anything.dpt").DPT_DINOv2("vits", localhub=True, **DPT)
    return model, lambda: model(image(70, 98))


@row("Depth-Anything-V2")
def depth_anything_v2() -> Built:
    model = load("depth_anything_v2.dpt").DepthAnythingV2("vits", **DPT)
    return model, lambda: model(image(70, 98))


@row("Depth-Anything-V2", "Depth-Anything-V2/metric_depth")
def depth_anything_v2_metric() -> Built:
    model = load("depth_anything_v2.dpt").DepthAnythingV2("vits", **DPT)
    return model, lambda: model(image(70, 98))


@row("Video-Depth-Anything")
def video_depth_anything() -> Built:
    model = load("video_depth_anything.video_depth").VideoDepthAnything(
        "vits", features=64, out_channels=[48, 96, 192, 384]
    )
    return model, lambda: model(image(70, 98, batch=3)[None])


@row("Depth-Anything-3", "Depth-Anything-3/src")
def depth_anything_3() -> Built:
    config = load("depth_anything_3.cfg")
    path = f"{load('depth_anything_3.registry').__file__.rpartition('/')[0]}/configs/da3-small.yaml"
    model = config.create_object(config.load_config(path))
    return model, lambda: model(image(70, 98, batch=3)[None])


@row("Depth-Anything-3", "Depth-Anything-3/src")
def depth_anything_3_one_view() -> Built:
    model = load("depth_anything_3.model.dinov2.dinov2").DinoV2("vits", [5, 7, 9, 11], cat_token=False)
    return model, lambda: model(image(70, 98)[:, None])


@row("MoGe")
def moge_encoder() -> Built:
    model = load("moge.model.modules").DINOv2Encoder("dinov2_vits14", [5, 7, 9, 11], 32)
    return model, lambda: model(image(80, 96), 5, 6, return_class_token=True)


def vggt() -> Built:
    """Return VGGT's trunk: a DINOv2, then blocks in turn on each frame and on all frames together."""
    model = load("vggt.models.aggregator").Aggregator(
        img_size=70, embed_dim=384, depth=6, num_heads=6, patch_embed="dinov2_vits14_reg"
    )
    return model, lambda: model(image(70, 98, batch=6).unflatten(0, (2, 3)))


@row("vggt", trunks="patch_embed")
def vggt_patch_embed() -> Built:
    return vggt()


@row("vggt", trunks="frame_blocks")
def vggt_frame_blocks() -> Built:
    return vggt()


@row("vggt", trunks="global_blocks")
def vggt_global_blocks() -> Built:
    return vggt()


@row("Pi3")
def pi3_encoder() -> Built:
    model = load("pi3.models.dinov2.hub.backbones").dinov2_vits14_reg(pretrained=False)
    return model, lambda: model(image(70, 98), is_training=True)


@row("Pi3")
def pi3() -> Built:
    model = load("pi3.models.pi3").Pi3()
    return model, lambda: model(image(70, 98)[None])


@row("ml-depth-pro", "ml-depth-pro/src", trunks="all")
def depth_pro() -> Built:
    def vit() -> nn.Module:
        vit = timm.create_model("vit_tiny_patch16_384", depth=5, dynamic_img_size=True)
        dims = {"encoder_feature_dims": [32] * 4, "encoder_feature_layer_ids": [1, 3], "vit_features": 192}
        return load("depth_pro.network.vit").make_vit_b16_backbone(vit, **dims).model

    encoder = load("depth_pro.network.encoder").DepthProEncoder([32] * 4, vit(), vit(), [1, 3], 32)
    decoder = load("depth_pro.network.decoder").MultiresConvDecoder([32, *encoder.dims_encoder], 32)
    model = load("depth_pro.depth_pro").DepthPro(encoder, decoder, (32, 1), True, vit())
    return model, lambda: model(image(1536, 1536, batch=1))


@row("croco")
def croco() -> Built:
    model = load("models.croco").CroCoNet((80, 96), enc_depth=5, dec_depth=2, pos_embed="RoPE100", **CROCO)
    return model, lambda: model._encode_image(image(80, 96), return_all_blocks=True)[0]


@row("croco")
def croco_cosine() -> Built:
    model = load("models.croco").CroCoNet((80, 96), enc_depth=5, dec_depth=2, **CROCO)
    return model, lambda: model._encode_image(image(80, 96), return_all_blocks=False)[0]


CROCO: dict[str, Any] = {"enc_embed_dim": 64, "enc_num_heads": 4, "dec_embed_dim": 64, "dec_num_heads": 4}


def pair() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two views that dust3r and mast3r take."""
    one, other = image(80, 96)[:, None]
    return {"img": one, "instance": ["0"]}, {"img": other, "instance": ["1"]}


@row("dust3r", "dust3r", "dust3r/croco")
def dust3r() -> Built:
    model = load("dust3r.model").AsymmetricCroCo3DStereo(
        img_size=(80, 96), enc_depth=5, dec_depth=2, pos_embed="RoPE100", head_type="linear", **CROCO
    )
    return model, lambda: model(*pair())


@row("dust3r", "dust3r", "dust3r/croco")
def dust3r_dpt() -> Built:
    model = load("dust3r.model").AsymmetricCroCo3DStereo(
        img_size=(96, 96), enc_depth=12, dec_depth=12, pos_embed="RoPE100", head_type="dpt", **CROCO
    )
    return model, lambda: model(*pair())


@row("mast3r", "mast3r", "mast3r/dust3r", "mast3r/dust3r/croco")
def mast3r() -> Built:
    model = load("mast3r.model").AsymmetricMASt3R(
        img_size=(96, 96),
        enc_depth=12,
        dec_depth=12,
        pos_embed="RoPE100",
        head_type="catmlp+dpt",
        output_mode="pts3d+desc24",
        two_confs=True,
        **CROCO,
    )
    return model, lambda: model(*pair())


@row("MiDaS")
def midas_vit() -> Built:
    model = load("midas.dpt_depth").DPTDepthModel(backbone="vitb16_384", features=32)
    return model, lambda: model(image(96, 128))


@row("MiDaS")
def midas_hybrid() -> Built:
    model = load("midas.dpt_depth").DPTDepthModel(backbone="vitb_rn50_384", features=32)
    return model, lambda: model(image(96, 128))


@row("MiDaS")
def midas_beit() -> Built:
    model = load("midas.dpt_depth").DPTDepthModel(backbone="beitb16_384", features=32)
    return model, lambda: model(image(96, 128))


@row("DPT")
def dpt_segmentation() -> Built:
    model = load("dpt.models").DPTSegmentationModel(7, backbone="vitb16_384", features=32)
    return model, lambda: model(image(96, 128))


@row("DPT")
def dpt_hybrid() -> Built:
    model = load("dpt.models").DPTDepthModel(backbone="vitb_rn50_384", features=32)
    return model, lambda: model(image(96, 128))
