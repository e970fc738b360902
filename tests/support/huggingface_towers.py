"""The vision towers of transformers' models of images and text, and others that are close to its plain ViTs."""

from __future__ import annotations

from typing import Any

from tests.support.huggingface_family import GRID, INTERPOLATE, OBLONG, PATCH, SIZE, SQUARE, Family

EAGER: dict[str, Any] = {"attn_implementation": "eager"}
SCALED = {"layer_scale_init_value": 0.3}
SPECTROGRAM = {"num_mel_bins": GRID[0] * PATCH, "max_length": GRID[1] * PATCH}
STRIDES = {"frequency_stride": PATCH, "time_stride": PATCH}

TOWERS: dict[str, Family] = {
    "AIMv2": Family("Aimv2VisionModel", {**SQUARE, "is_native": True}),
    "AST": Family("ASTModel", {**SIZE, **SPECTROGRAM, **STRIDES}),
    "BLIP": Family("BlipVisionModel", SQUARE, INTERPOLATE),
    "BLIP, eager": Family("BlipVisionModel", {**SQUARE, **EAGER}, INTERPOLATE),
    "BLIP-2": Family("Blip2VisionModel", SQUARE, INTERPOLATE),
    "InstructBLIP": Family("InstructBlipVisionModel", SQUARE, INTERPOLATE),
    "InstructBLIP video": Family("InstructBlipVideoVisionModel", SQUARE, INTERPOLATE),
    "FLAVA": Family("FlavaImageModel", SQUARE, INTERPOLATE),
    "GIT": Family("GitVisionModel", SQUARE, INTERPOLATE),
    "Janus": Family("JanusVisionModel", SQUARE, INTERPOLATE),
    "Kosmos-2": Family("Kosmos2VisionModel", SQUARE, INTERPOLATE, folder="kosmos2"),
    "TIPSv2": Family("Tipsv2VisionModel", {**SQUARE, "mlp_ratio": 2}),
    "InternVL": Family("InternVLVisionModel", {**SQUARE, **SCALED}),
    "InternVL, eager": Family("InternVLVisionModel", {**SQUARE, **SCALED, **EAGER}),
    "Qianfan OCR": Family("QianfanOCRVisionModel", {**SQUARE, **SCALED}),
    "RADIO": Family("RadioModel", {**SIZE, "mlp_ratio": 2.0, "max_img_size": 6 * PATCH}),
    "MLCD": Family("MLCDVisionModel", SQUARE),
    "Step 3.7": Family("Step3p7VisionModel", {**SQUARE, **SCALED}),
    "Idefics 2": Family("Idefics2VisionTransformer", SQUARE, folder="idefics2"),
    "Idefics 3": Family("Idefics3VisionTransformer", SQUARE),
    "SmolVLM": Family("SmolVLMVisionTransformer", SQUARE),
}

# Those that return no hidden states, or do not train, or compute attention as they should in one way only.
BARE: dict[str, Family] = {
    "Granite Docling": Family("GraniteDoclingVisionModel", SQUARE),
    "Ovis2": Family("Ovis2VisionTransformer", SQUARE, folder="ovis2"),
    "ViTPose": Family("VitPoseBackbone", {**OBLONG, "patch_size": (PATCH, PATCH), "mlp_ratio": 2}),
    "Idefics": Family("IdeficsVisionTransformer", {**SQUARE, "embed_dim": 64}, INTERPOLATE, folder="idefics"),
    "Phi-4": Family("Phi4MultimodalVisionModel", {**SQUARE, **EAGER}),
    "MGP-STR": Family("MgpstrModel", {**OBLONG, "mlp_ratio": 2}),
}
