"""Split the blocks of transformers that norm their tokens before attention and before the MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .base import Adapter
from .features import input_projection
from .huggingface_attention import (
    BIASED,
    REMEDY,
    attend,
    attention_of,
    implementation,
    path_of_inner_attention,
    why_causal,
)
from .huggingface_parts import (
    MASKS,
    arguments_by_name,
    norm_before,
    parameter_names,
    residual_branch,
    returns_tuple,
    why_unknown,
)
from .libraries import transformers_path
from .registry import register


def register_layers(*names: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Register the decorated adapter for the layers of these classes of transformers, given as ``"folder.Class"``."""

    def add(adapter: type[Adapter]) -> type[Adapter]:
        for name in names:
            register(f"{transformers_path(name)}.forward")(adapter)
        return adapter

    return add


@register("transformers.models.idefics.vision.IdeficsVisionEncoderLayer.forward")
@register_layers(
    "vit.ViTLayer",
    "deit.DeiTLayer",
    "ijepa.IJepaLayer",
    "vit_msn.ViTMSNLayer",
    "pixio.PixioLayer",
    "dpt.DPTViTLayer",
    "dinov2.Dinov2Layer",
    "dinov2_with_registers.Dinov2WithRegistersLayer",
    "eomt.EomtLayer",
    "dinov3_vit.DINOv3ViTLayer",
    "eomt_dinov3.EomtDinov3Layer",
    "sapiens2.Sapiens2Layer",
    "clip.CLIPEncoderLayer",
    "siglip.SiglipEncoderLayer",
    "altclip.AltCLIPEncoderLayer",
    "chinese_clip.ChineseCLIPVisionLayer",
    "clipseg.CLIPSegEncoderLayer",
    "metaclip_2.MetaClip2EncoderLayer",
    "owlvit.OwlViTEncoderLayer",
    "owlv2.Owlv2EncoderLayer",
    "audio_spectrogram_transformer.ASTLayer",
    "blip.BlipEncoderLayer",
    "blip_2.Blip2EncoderLayer",
    "instructblip.InstructBlipEncoderLayer",
    "instructblipvideo.InstructBlipVideoEncoderLayer",
    "flava.FlavaLayer",
    "git.GitVisionEncoderLayer",
    "granite_docling.GraniteDoclingEncoderLayer",
    "janus.JanusVisionEncoderLayer",
    "kosmos2.Kosmos2VisionEncoderLayer",
    "tipsv2.Tipsv2VisionLayer",
)
class Layer(Adapter):
    """Split a block by the names that transformers gives its parts and arguments."""

    projection: str | tuple[str, ...] = (
        "embeddings.patch_embeddings.projection",
        "embeddings.patch_embeddings",
        "embeddings.patch_embedding",
        "embeddings.patch_embed",
    )

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments_by_name(block, args, kwargs)
        if given.get("position_embeddings") is not None:
            given["position_embeddings"] = average_angles(tokens, *given["position_embeddings"])
        return residual_branch(block, 1, attend(block, norm_before(block, 1)(x), tokens, given)) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = norm_before(block, 2)(x)
        if hasattr(block, "mlp"):
            return residual_branch(block, 2, block.mlp(y)) + x
        y = block.intermediate(y)
        if parameter_names(type(block.output).forward):  # which takes the residual and adds it
            return block.output(y, x)
        return residual_branch(block, 2, block.output(y)) + x

    @staticmethod
    def pack(block: Any, x: Tensor) -> Any:
        return (x,) if returns_tuple(block) else x

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown(block) or why_causal(block)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return implementation(attention_of(block)) in BIASED

    @staticmethod
    def mask_remedy(block: Any) -> str:
        found = implementation(attention_of(block))
        return f", or {REMEDY[0].lower()}{REMEDY[1:]}: attn_implementation={found!r} adds no bias of ours"

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        given = arguments_by_name(block, args, kwargs)
        masked = any(given.get(name) is not None for name in (*MASKS, "head_mask"))
        return not masked and implementation(attention_of(block)) == "sdpa"

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        return input_projection(block, path_of_inner_attention(block), compare)


def average_angles(tokens: LayerTokens, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """Return the rotary cosines and sines [N, D] of all patches for those that are left: [B, 1, M, D] each."""
    unturned = torch.stack([torch.ones_like(cosine[0]), torch.zeros_like(sine[0])])
    angles = torch.stack([cosine, sine])[:, None]  # [2, 1 for all heads, N, D]
    return tokens.average_patches(angles, neutral=unturned[:, None]).unbind(-4)
