"""Small models of real classes, and images that have something to merge."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from algm_patch.patching.find_vit import find_vit

GRID = (6, 5)

# Every kind of VisionTransformer in timm whose blocks have two halves.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", {}),
    "AugReg, no fused attention": ("vit_small_patch16_224.augreg_in21k_ft_in1k", {"fused": False}),
    "average pooling": ("vit_medium_patch16_gap_240", {}),
    "DeiT, distillation token": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "SigLIP, map pooling": ("vit_base_patch16_siglip_224", {}),
    "SigLIP, average pooling": ("vit_base_patch16_siglip_gap_224", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {"dynamic_img_size": True, "init_values": 0.1}),
    "DINOv2, 4 registers": ("vit_small_patch14_reg4_dinov2", {"dynamic_img_size": True, "init_values": 0.1}),
    "ResPostBlock": ("vit_base_patch16_rpn_224", {}),
    "ParallelThingsBlock": ("vit_small_patch16_18x2_224", {"init_values": 0.1}),
    "differential attention": ("vit_dlittle_patch16_reg1_gap_256", {"init_values": 0.1}),
    "hybrid, patches on features": ("vit_tiny_r_s16_p8_224", {}),
    "hybrid, ResNet": ("vit_small_resnet26d_224", {}),
    "hybrid, convolutional stem": ("vit_base_mci_224", {}),
}

# timm's other plain vision transformers: rotary angles, relative biases, other ways to embed.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "EVA": ("eva_giant_patch14_224", {}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "EVA-02, post-norm": ("eva02_tiny_patch14_224", {"use_post_norm": True}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "RoPE": ("vit_small_patch16_rope_224", {}),
    "RoPE, mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "RoPE, register": ("vit_base_patch16_rope_reg1_gap_256", {"init_values": 0.1}),
    "Perception Encoder": ("vit_pe_spatial_small_patch16_512", {}),
    "Perception Encoder, pooled": ("vit_pe_core_tiny_patch16_384", {}),
    "BEiT": ("beit_base_patch16_224", {"init_values": 0.1}),
    "BEiT v2": ("beitv2_base_patch16_224", {"init_values": 0.1}),
    "BEiT, shared bias": (
        "beit_base_patch16_224",
        {"init_values": 0.1, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "BEiT, no fused attention": ("beit_base_patch16_224", {"init_values": 0.1, "fused": False}),
    "relative positions": ("vit_relpos_small_patch16_224", {"init_values": 0.1}),
    "relative positions, res-post-norm": ("vit_relpos_base_patch16_rpn_224", {"init_values": 0.1}),
    "relative positions, shared": ("vit_srelpos_small_patch16_224", {"init_values": 0.1}),
    "relative positions, class token": ("vit_relpos_base_patch16_clsgap_224", {"init_values": 0.1}),
    "relative positions, no fused attention": ("vit_relpos_small_patch16_224", {"init_values": 0.1, "fused": False}),
    "NaFlex": ("naflexvit_base_patch16_gap", {"init_values": 0.1}),
    "NaFlex, SigLIP": ("naflexvit_base_patch16_siglip", {}),
    "NaFlex, RoPE": ("naflexvit_base_patch16_gap", {"init_values": 0.1, "rope_type": "axial"}),
}

# Encoders of vision language models, whose tokens leave as [B, H, W, D].
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("qwen3_vit_88m_enc", {}),
    "DeepSeek": ("deepseek_vit_412m_enc", {}),
    "Gemma 4": ("gemma4_vit_167m_enc", {"global_pool": "none", "head_dim": 16, "intermediate_size": 128}),
}
# Older releases do not have them all.
FAMILIES, OTHERS, ENCODERS = (
    {family: (name, options) for family, (name, options) in families.items() if timm.is_model(name.partition(".")[0])}
    for families in (FAMILIES, OTHERS, ENCODERS)
)
ALL = {**FAMILIES, **OTHERS, **ENCODERS}


def build(family: str, grid: tuple[int, int] = GRID, depth: int = 5, **options: Any) -> Any:
    """Build a model of a family, in eval mode: narrow, of few blocks, with random weights and a grid of our choice."""
    name, extra = ALL[family]
    extra = {**extra, **options}
    fused = extra.pop("fused", True)
    patch = pixels_per_token(family)
    torch.manual_seed(0)
    width = 768 if "mci" in name else 64
    model = timm.create_model(
        name,
        img_size=(grid[0] * patch, grid[1] * patch),
        embed_dim=width,
        depth=depth,
        num_heads=4,
        num_classes=3,
        **extra,
    )
    for parameter in model.parameters():  # untrained class tokens and biases are almost nothing: give them a say
        if parameter.dim() == 1 or parameter.shape[:-1].numel() == 1:
            nn.init.normal_(parameter, parameter.detach().mean().item(), 0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias_table"):
            nn.init.normal_(parameter)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model.eval()


def blocks_of(model: nn.Module) -> list[Any]:
    """Return the blocks of the ViT in a model."""
    return find_vit(model)[1].blocks


def read_every_block(model: nn.Module) -> None:
    """Hook every block, so that each gives back the full grid."""
    for block in blocks_of(model):
        block.register_forward_hook(read)


def read(module: nn.Module, inputs: Any, output: Any) -> None:
    """Read the output of a block, as the hooks of feature extractors do."""


def block_outputs(model: Any, image: Tensor) -> list[Tensor]:
    """Run timm's blocks one at a time, in a loop of our own. Return what each leaves, on the full grid."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
    outputs = []
    for block in model.blocks:
        x = block(x)
        outputs.append(x)
    return outputs


def pixels_per_token(family: str) -> int:
    """Return the side of a patch of a family, stem included."""
    name = ALL[family][0]
    return (
        14 if "patch14" in name or "deepseek" in name else 32 if "resnet26d_224" in name or "r_s16_p8" in name else 16
    )


def photo(family: str = "ViT", batch: int = 2, grid: tuple[int, int] = GRID, seed: int = 0) -> Tensor:
    """Return images [B, 3, H, W]: smooth, so that neighbours are alike, with some texture."""
    generator = torch.Generator().manual_seed(seed)
    patch = pixels_per_token(family)
    coarse = torch.randn(batch, 3, 3, 3, generator=generator)
    size = (grid[0] * patch, grid[1] * patch)
    smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
    return smooth + 0.1 * torch.randn(batch, 3, *size, generator=generator)
