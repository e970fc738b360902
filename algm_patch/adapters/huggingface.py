"""Blocks of transformers: where they attend, where their MLP begins, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .base import Adapter
from .features import input_projection
from .huggingface_parts import (
    BIASED,
    MASKS,
    REMEDY,
    arguments,
    attend,
    attention_of,
    branch,
    implementation,
    norm,
    parameters,
    path_of_core,
    returns_tuple,
    why_not,
)
from .registry import reads, refuse, register, unpatched
from .timm import WINDOWED


def modeling(name: str) -> str:
    """Path of a class given as ``folder.Class``."""
    folder, _, rest = name.partition(".")
    file = {"data2vec": "data2vec_vision", "donut": "donut_swin", "maskformer": "maskformer_swin"}.get(folder, folder)
    return f"transformers.models.{folder}.modeling_{file}.{rest}"


def of_layers(*names: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Class decorator: an adapter for layers of these classes."""

    def add(adapter: type[Adapter]) -> type[Adapter]:
        for name in names:
            register(f"{modeling(name)}.forward")(adapter)
        return adapter

    return add


@of_layers(
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
)
class Layer(Adapter):
    """A block that norms its tokens before attention and before the MLP."""

    projection: str | tuple[str, ...] = (
        "embeddings.patch_embeddings.projection",
        "embeddings.patch_embeddings",
        "embeddings.patch_embedding",
    )

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments(block, args, kwargs)
        if given.get("position_embeddings") is not None:
            given["position_embeddings"] = average_angles(tokens, *given["position_embeddings"])
        return branch(block, 1, attend(block, norm(block, 1)(x), tokens, given)) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = norm(block, 2)(x)
        if hasattr(block, "mlp"):
            return branch(block, 2, block.mlp(y)) + x
        y = block.intermediate(y)
        if parameters(type(block.output).forward):  # which takes the residual and adds it
            return block.output(y, x)
        return branch(block, 2, block.output(y)) + x

    @staticmethod
    def pack(block: Any, x: Tensor) -> Any:
        return (x,) if returns_tuple(block) else x

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_not(block)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return implementation(attention_of(block)) in BIASED

    @staticmethod
    def mask_remedy(block: Any) -> str:
        found = implementation(attention_of(block))
        return f", or {REMEDY[0].lower()}{REMEDY[1:]}: attn_implementation={found!r} adds no bias of ours"

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        given = arguments(block, args, kwargs)
        masked = any(given.get(name) is not None for name in (*MASKS, "head_mask"))
        return not masked and implementation(attention_of(block)) == "sdpa"

    @staticmethod
    def features(block: Any, metric: str) -> tuple[str, int | None] | None:
        return input_projection(block, path_of_core(block), metric)


def average_angles(tokens: LayerTokens, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """Return the rotary cosines and sines [N, D] of all patches for those that are left."""
    unturned = torch.stack([torch.ones_like(cosine[0]), torch.zeros_like(sine[0])])
    angles = torch.stack([cosine, sine])[:, None]  # [2, 1 for all heads, N, D]
    return tokens.average_patches(angles, neutral=unturned[:, None]).unbind(-4)


@of_layers("vit_mae.ViTMAELayer")
class ViTMAELayer(Layer):
    projection = "embeddings"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "patch_embeddings")

    @staticmethod
    def grid(projection: Any, output: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Of ViTMAEEmbeddings, which drops patches at random and shuffles the others, even if it drops none."""
        image = args[0] if args else kwargs["pixel_values"]
        height, width = (n // p for n, p in zip(image.shape[2:], projection.patch_embeddings.patch_size, strict=True))
        _, dropped, order = output
        if dropped.any() or not torch.equal(order, torch.arange(height * width, device=order.device).expand_as(order)):
            raise ValueError(
                "ViT-MAE drops and shuffles patches at random, and ALGM needs the whole grid in order. Set "
                f"config.mask_ratio = 0 and pass noise=torch.arange({height * width}).expand({len(image)}, -1)"
            )
        return height, width


@of_layers("siglip2.Siglip2EncoderLayer")
class Siglip2EncoderLayer(Layer):
    projection = "embeddings"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "patch_embedding")

    @staticmethod
    def grid(
        projection: Any, output: Any, pixel_values: Any, spatial_shapes: Any, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        """Of Siglip2VisionEmbeddings, whose images bring their own grids."""
        (height, width), *others = spatial_shapes.unique(dim=0).tolist()
        if others or height * width != output.shape[1]:
            raise ValueError(
                f"spatial_shapes={spatial_shapes.tolist()} for {output.shape[1]} patches an image: ALGM needs one grid "
                "in the batch and no padding. Run images of one size together, with max_num_patches=height * width"
            )
        return height, width

    @staticmethod
    def position_cost(trunk: Any, grid: tuple[int, int]) -> int:
        """Return the operations that resize the table of positions, which newer releases do by a product."""
        resize, table = trunk.embeddings.resize_positional_embeddings, trunk.embeddings.position_embedding.weight
        return 0 if "interpolate" in resize.__code__.co_names else 2 * grid[0] * grid[1] * table.numel()


GRIDDED = "its tokens stay a grid [B, H, W, D], along whose sides attention takes relative positions"
POOLED = "its keys or tokens are pooled on the grid, which merged tokens no longer form"
BESIDE = "its detection tokens stand after the patches, which ALGM takes for the last tokens"
for reason, names in {
    WINDOWED: "swin.SwinLayer swinv2.Swinv2Layer maskformer.MaskFormerSwinLayer donut.DonutSwinLayer "
    "swin2sr.Swin2SRLayer hiera.HieraLayer dinat.DinatLayer sam2.Sam2MultiScaleBlock sam3.Sam3ViTLayer "
    "vitdet.VitDetLayer lw_detr.LwDetrViTLayer rf_detr.RfDetrDinov2Layer",
    GRIDDED: "seggpt.SegGptLayer sam.SamVisionLayer sam_hq.SamHQVisionLayer",
    POOLED: "segformer.SegformerLayer glpn.GLPNLayer pvt.PvtLayer pvt_v2.PvtV2BlockLayer cvt.CvtLayer",
    BESIDE: "yolos.YolosLayer",
}.items():
    for name in names.split():
        refuse(f"{modeling(name)}.forward", reason)


RUNNERS = (
    "vit.ViTModel",
    "vit.ViTEncoder",
    "deit.DeiTModel",
    "deit.DeiTEncoder",
    "ijepa.IJepaModel",
    "ijepa.IJepaEncoder",
    "vit_msn.ViTMSNModel",
    "vit_msn.ViTMSNEncoder",
    "vit_mae.ViTMAEModel",
    "vit_mae.ViTMAEEncoder",
    "pixio.PixioModel",
    "pixio.PixioEncoder",
    "beit.BeitModel",
    "dinov2.Dinov2Encoder",
    "dinov2_with_registers.Dinov2WithRegistersEncoder",
    "dinov3_vit.DINOv3ViTModel",
    "dinov3_vit.DINOv3ViTEncoder",
    "sapiens2.Sapiens2Encoder",
    "dpt.DPTViTEncoder",
    "clip.CLIPEncoder",
    "siglip.SiglipEncoder",
    "altclip.AltCLIPEncoder",
    "chinese_clip.ChineseCLIPVisionEncoder",
    "clipseg.CLIPSegEncoder",
    "metaclip_2.MetaClip2Encoder",
    "owlvit.OwlViTEncoder",
    "owlv2.Owlv2Encoder",
    "siglip2.Siglip2Encoder",
)


@reads(*(f"{modeling(name)}.forward" for name in RUNNERS))
def layers_read(runner: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return all layers if the runner collects hidden states itself, else the last.

    Newer ones collect them by hooks or by forwards set on the layers, which are seen without this.
    """
    count = len(layers_of(runner))
    return range(count) if collects_hidden_states(runner, args, kwargs) else [count - 1]


def layers_of(runner: Any) -> Any:
    """Return the layers that a module runs: its own, or its encoder's, which tells by itself what it reads."""
    for name in ("layer", "layers"):
        if hasattr(runner, name):
            return getattr(runner, name)
    return layers_of(runner.encoder if hasattr(runner, "encoder") else runner.model)


def collects_hidden_states(runner: Any, args: Any, kwargs: Any) -> bool:
    if "output_hidden_states" not in parameters(unpatched(type(runner)).forward):
        return False
    asked = arguments(runner, args[1:], kwargs).get("output_hidden_states")
    return bool(getattr(getattr(runner, "config", None), "output_hidden_states", False) if asked is None else asked)
