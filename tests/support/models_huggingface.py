"""Small models of transformers' classes, and images that have something to merge."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.support import models
from tests.support.huggingface_family import GRID, INTERPOLATE, OBLONG, PATCH, SIZE, SQUARE, Family
from tests.support.huggingface_towers import BARE, TOWERS

BEIT = {**OBLONG, "layer_scale_init_value": 0.3}

FAMILIES = {
    "ViT": Family("ViTModel", OBLONG),
    "ViT, eager": Family("ViTModel", {**OBLONG, "attn_implementation": "eager"}),
    "ViT-MSN": Family("ViTMSNModel", OBLONG),
    "I-JEPA": Family("IJepaModel", OBLONG),
    "DeiT": Family("DeiTModel", OBLONG),
    "DINOv2": Family("Dinov2Model", {**SQUARE, "mlp_ratio": 2}),
    "DINOv2, SwiGLU": Family("Dinov2Model", {**SQUARE, "mlp_ratio": 2, "use_swiglu_ffn": True}),
    "DINOv2, registers": Family("Dinov2WithRegistersModel", {**SQUARE, "mlp_ratio": 2}),
    "DINOv3": Family("DINOv3ViTModel", {**SQUARE, "num_register_tokens": 4}),
    "DINOv3, eager, gated": Family(
        "DINOv3ViTModel",
        {**SQUARE, "num_register_tokens": 2, "use_gated_mlp": True, "attn_implementation": "eager"},
    ),
    "Sapiens 2": Family(
        "Sapiens2Model", {**SQUARE, "num_register_tokens": 2, "num_key_value_heads_per_layer": [4, 2, 2, 1, 4]}
    ),
    "BEiT, no bias": Family(
        "BeitModel", {**SQUARE, "layer_scale_init_value": 0.3, "use_absolute_position_embeddings": True}
    ),
    "BEiT, shared bias": Family("BeitModel", {**BEIT, "use_shared_relative_position_bias": True}),
    "BEiT, bias per layer": Family("BeitModel", {**BEIT, "use_relative_position_bias": True}),
    "BEiT, both, eager": Family(
        "BeitModel",
        {
            **BEIT,
            "use_relative_position_bias": True,
            "use_shared_relative_position_bias": True,
            "layer_scale_init_value": 0.0,
            "attn_implementation": "eager",
        },
        INTERPOLATE,
    ),
    "Data2Vec, shared bias": Family("Data2VecVisionModel", {**BEIT, "use_shared_relative_position_bias": True}),
    "Data2Vec, bias per layer": Family("Data2VecVisionModel", {**BEIT, "use_relative_position_bias": True}),
    "Data2Vec, both, eager": Family(
        "Data2VecVisionModel",
        {
            **BEIT,
            "use_relative_position_bias": True,
            "use_shared_relative_position_bias": True,
            "attn_implementation": "eager",
        },
        INTERPOLATE,
    ),
    "CLIP": Family("CLIPVisionModel", SQUARE, INTERPOLATE),
    "AltCLIP": Family("AltCLIPVisionModel", SQUARE, INTERPOLATE),
    "Chinese CLIP": Family("ChineseCLIPVisionModel", SQUARE, INTERPOLATE),
    "CLIPSeg": Family("CLIPSegVisionModel", SQUARE, INTERPOLATE),
    "MetaCLIP 2": Family("MetaClip2VisionModel", SQUARE, INTERPOLATE),
    "OWL-ViT": Family("OwlViTVisionModel", SQUARE, INTERPOLATE),
    "OWLv2": Family("Owlv2VisionModel", SQUARE, INTERPOLATE),
    "SigLIP": Family("SiglipVisionModel", SQUARE, INTERPOLATE),
    "SigLIP, eager": Family("SiglipVisionModel", {**SQUARE, "attn_implementation": "eager"}, INTERPOLATE),
    "SigLIP 2": Family("Siglip2VisionModel", {**SIZE, "num_patches": 36}),
    "ViT-MAE": Family(
        "ViTMAEModel",
        {**SQUARE, "mask_ratio": 0.0},
        {**INTERPOLATE, "noise": torch.arange(GRID[0] * GRID[1])},
    ),
    "Pixio": Family("PixioModel", {**SQUARE, "n_cls_tokens": 3, "mlp_ratio": 2}),
    "DPT": Family("DPTModel", SQUARE),
    "DPT, eager": Family("DPTModel", {**SQUARE, "attn_implementation": "eager"}),
    "DINOv2, eager": Family("Dinov2Model", {**SQUARE, "mlp_ratio": 2, "attn_implementation": "eager"}),
    "CLIP, eager": Family("CLIPVisionModel", {**SQUARE, "attn_implementation": "eager"}, INTERPOLATE),
}
# In this release, these return no hidden states, or are given their tokens by name.
if transformers.__version__.startswith("4.57"):
    BARE |= {family: TOWERS.pop(family) for family in ("Janus", "InternVL", "InternVL, eager", "MLCD")}
FAMILIES |= TOWERS
# Older releases do not have them all.
FAMILIES = {family: kind for family, kind in FAMILIES.items() if kind.known}
EVERY = {**FAMILIES, **{family: kind for family, kind in BARE.items() if kind.known}}


def build(family: str, model: str | None = None, **options: Any) -> Any:
    """Build a model of a family, in eval mode: narrow, of few layers, with random weights.

    Args:
        model: another class of transformers, for the family's configuration.
        options: of the configuration, above the family's.
    """
    kind = EVERY[family]
    torch.manual_seed(0)
    cls = getattr(transformers, model) if model else getattr(kind.place, kind.model)
    built = cls(kind.config(**options))
    for part in built.modules():
        if type(part).__name__ == "PixioPatchEmbeddings":
            part.image_size = OBLONG["image_size"]  # older ones insist on it, and then resize the positions
        if type(part).__name__ in ("Ovis2VisionEmbeddings", "GraniteDoclingVisionEmbeddings"):
            part.position_ids = part.position_ids[:, : GRID[0] * GRID[1]]  # which the model does not resize
    if family == "Step 3.7":
        built.downsampler1 = built.downsampler2 = nn.Identity()  # that make other tokens of the final ones
    return enliven(built)


def enliven(model: Any) -> Any:
    """Give random values to what begins as zero or one: biases, scales, class tokens, tables of positions."""
    for name, parameter in model.named_parameters():
        vector = parameter.dim() == 1 or parameter.shape[:-1].numel() == 1
        if vector or "position" in name or "token" in name:
            nn.init.normal_(parameter, parameter.detach().mean().item(), 0.2)
    return model.eval()


def photo(batch: int = 2, grid: tuple[int, int] = GRID, seed: int = 0) -> Tensor:
    """Return images [B, 3, H, W]: smooth, so that neighbours are alike, with some texture."""
    return models.photo("ViT", batch, grid, seed)


def inputs(family: str, image: Tensor) -> dict[str, Any]:
    """Return the arguments of a model's call on images."""
    call = dict(EVERY[family].call)
    if "noise" in call:
        call["noise"] = call["noise"].expand(len(image), -1)
    if family == "SigLIP 2":
        return {**call, **patches(image)}
    if family == "AST":
        return {**call, "input_values": image.mean(1).mT}
    return {**call, "pixel_values": image}


def patches(image: Tensor) -> dict[str, Tensor]:
    """Return what SigLIP 2's processor makes of images [B, 3, H, W]."""
    rows = nn.functional.unfold(image, PATCH, stride=PATCH).mT
    grid = [side // PATCH for side in image.shape[2:]]
    return {
        "pixel_values": rows,
        "pixel_attention_mask": torch.ones(rows.shape[:2], dtype=torch.int64),
        "spatial_shapes": torch.tensor([grid] * len(image)),
    }


@cache
def takes_mask(family: str) -> bool:
    """Return True if a mask of pairs of tokens changes the output of a family's model: some take it and ignore it."""
    model, image = build(family), photo()
    with torch.no_grad():
        plain = tokens(family)(model, image)
        try:
            masked = tokens(family)(model, image, **mask(plain.shape[1]))
        except (KeyError, TypeError):  # KeyError: transformers 5.0, which looks for the reason of the TypeError
            return False
    return not torch.equal(plain, masked)


def mask(length: int) -> dict[str, Tensor]:
    """Return a mask of pairs of tokens, as an argument of transformers' forwards."""
    return {"attention_mask": torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(1))}


def tokens(family: str) -> Callable[..., Tensor]:
    """Return the function that gives a model's final tokens."""

    def final(model: Any, image: Tensor, **others: Any) -> Tensor:
        if family == "Granite Docling":
            encoded: Tensor = model.encode(image)[0]  # whose output goes through a connector
            return encoded
        output = model(**inputs(family, image), **others)
        found: Tensor = output.feature_maps[-1] if hasattr(output, "feature_maps") else output.last_hidden_state
        return found

    return final
