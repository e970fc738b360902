"""Rows of the table of public projects: image encoders, their training, and what is built on one by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import nn

from tests.support.third_party_rows import Built, image, load, row

DINO: dict[str, Any] = {"embed_dim": 64, "depth": 5, "num_heads": 4, "patch_size": 14, "img_size": 70}


@row("dinov2")
def dinov2() -> Built:
    model = load("dinov2.models.vision_transformer").vit_small(14, num_register_tokens=4, img_size=70, block_chunks=0)
    return model, lambda: (model.forward_features(image(70, 98)), model.get_intermediate_layers(image(70, 98), [1, 3]))


@row("webssl")
def webssl() -> Built:
    model = load("dinov2.vision_transformer").DinoVisionTransformer(**DINO, init_values=0.1, block_chunks=0)
    return model, lambda: (model.forward_features(image(70, 98)), model.get_intermediate_layers(image(70, 98), 3))


def dinov3_vit(**options: Any) -> Any:
    """Return dinov3's ViT with the options that its hub's models share."""
    size = {**DINO, "patch_size": 16, "img_size": 96, "depth": 8, "n_storage_tokens": 4}
    vit = load("dinov3.models.vision_transformer").DinoVisionTransformer
    return vit(**size, layerscale_init=0.1, mask_k_bias=True, pos_embed_rope_dtype="fp32", **options)


@row("dinov3")
def dinov3() -> Built:
    model = initialized(dinov3_vit())
    return model, lambda: (
        model.forward_features(image(80, 96)),
        model.get_intermediate_layers(image(80, 96), n=[1, 7]),
    )


@row("dinov3")
def dinov3_swiglu() -> Built:
    model = initialized(dinov3_vit(ffn_layer="swiglu", untie_cls_and_patch_norms=True))
    return model, lambda: (model.forward_features(image(80, 96)), model.get_intermediate_layers(image(80, 96), n=2))


@row("dinov3")
def dinov3_depth() -> Built:
    models = load("dinov3.eval.depth.models.encoder")
    model = models.DinoVisionTransformerWrapper(initialized(dinov3_vit()), models.BackboneLayersSet.FOUR_EVEN_INTERVALS)
    return model, lambda: model(image(80, 96))


@row("dinov3")
def dinov3_segmentation() -> Built:
    adapter = load("dinov3.eval.segmentation.models.backbone.dinov3_adapter").DINOv3_Adapter
    model = adapter(initialized(dinov3_vit()), [1, 3, 5, 7], conv_inplane=16, deform_num_heads=4, with_cp=False)
    return model, lambda: model(image(96, 96))


def initialized(model: Any) -> Any:
    """Return a model of dinov3, which is made without weights."""
    model.init_weights()
    return model


@row("mae")
def mae_finetuned() -> Built:
    size = {"img_size": (80, 96), "patch_size": 16, "embed_dim": 64, "depth": 5, "num_heads": 4, "num_classes": 3}
    model = load("models_vit").VisionTransformer(global_pool=True, norm_layer=nn.LayerNorm, **size)
    return model, lambda: model.forward_features(image(80, 96))  # forward is timm's, and gives more arguments today


@row("open_clip", "open_clip/src")
def open_clip() -> Built:
    vision = {"image_size": 96, "layers": 5, "width": 64, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 4, "layers": 5}
    model = load("open_clip.model").CLIP(32, vision, text)
    return model, lambda: model(image(96, 96), torch.arange(16).view(2, 8))


@row("open_clip", "open_clip/src")
def open_clip_intermediates() -> Built:
    model = load("open_clip.transformer").VisionTransformer((80, 96), 16, 64, 5, 4, 2.0, output_dim=32)
    return model, lambda: model.forward_intermediates(image(80, 96), indices=[1, 3])


@row("lightly")
def lightly() -> Built:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=5)
    wrapper = load("lightly.models.modules.masked_vision_transformer_timm").MaskedVisionTransformerTIMM
    model = wrapper(vit)
    return model, lambda: (model(image(96, 96)), model.forward_intermediates(image(96, 96)))


@row("lightly-train", "lightly-train/src", "lightly")
def lightly_train_dinov2() -> Built:
    vits = load("lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer")
    model = load("lightly_train._models.dinov2_vit.dinov2_vit").DINOv2ViTModelWrapper(
        vits.DinoVisionTransformer(**DINO, init_values=0.1, num_register_tokens=4, block_chunks=0)
    )
    return model, lambda: (
        model.forward_features(image(70, 98)),
        model.forward_multiscale_features(image(70, 98), [1, 3]),
    )


@row("lightly-train", "lightly-train/src", "lightly")
def lightly_train_dinov3() -> Built:
    vits = load("lightly_train._models.dinov3.dinov3_src.models.vision_transformer")
    vit = initialized(vits.DinoVisionTransformer(**{**DINO, "patch_size": 16, "depth": 5}, n_storage_tokens=4))
    model = load("lightly_train._models.dinov3.dinov3_vit").DINOv3ViTModelWrapper(vit)
    return model, lambda: model.forward_features(image(80, 96))


@row("RADIO")
def radio() -> Built:
    model = radio_model(cpe_max_size=128)
    return model, lambda: (model(image(80, 96)), model.forward_intermediates(image(80, 96), [1, 3]))


@row("RADIO")
def radio_one_size() -> Built:
    model = radio_model(cpe_max_size=None)
    return model, lambda: model(image(96, 96))


def radio_model(cpe_max_size: int | None) -> Any:
    """Return a RADIO as its hubconf.py builds one: for images of any size, or on timm's own patch embedding."""
    names = ["drop", "drop_path", "drop_block", "bn_momentum", "bn_eps", "torchscript", "initial_checkpoint"]
    given = dict.fromkeys(["in_chans", "input_size", *names]) | {"gp": "token", "num_classes": 0, "pretrained": False}
    given |= {"model": "vit_tiny_patch16_224", "model_kwargs": {"img_size": 96, "depth": 5, "weight_init": ""}}
    given |= {"teachers": [{"name": "clip"}, {"name": "sam"}], "cls_token_per_teacher": True, "register_multiple": 8}
    given |= {"drop": 0.0, "drop_path": 0.0, "initial_checkpoint": "", "torchscript": False}
    radio = load("radio.radio_model")
    vit = radio.create_model_from_args(SimpleNamespace(cpe_max_size=cpe_max_size, **given))
    conditioner = load("radio.input_conditioner").get_default_conditioner()
    return radio.RADIOModel(vit, conditioner, 16, 128, radio.Resolution(96, 96), torch.tensor([0]))
