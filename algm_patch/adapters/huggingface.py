"""Blocks of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..passes import LayerTokens
from . import Adapter, reads, refuse, register
from .attention import altered, look_up
from .features import input_projection
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


class HuggingFaceLayer(Adapter):
    projection = "embeddings.patch_embeddings.projection"

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return takes_bias(attention_of(block))

    @staticmethod
    def packs(block: Any, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> bool:
        return attention_mask is None and implementation(attention_of(block)) == "sdpa"

    @staticmethod
    def features(block: Any, metric: str) -> tuple[str, int | None] | None:
        path = "self_attn" if hasattr(block, "self_attn") else "attention"
        return input_projection(block, f"{path}.attention" if is_pair(attention_of(block)) else path, metric)

    @staticmethod
    def mask_remedy(block: Any) -> str:
        found = implementation(attention_of(block))
        return f", or call model.set_attn_implementation('sdpa'): attn_implementation={found!r} adds no bias of ours"


@of_layers("vit.ViTLayer", "deit.DeiTLayer", "ijepa.IJepaLayer", "vit_msn.ViTMSNLayer")
class ViTLayer(HuggingFaceLayer):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        return block.dropout(attend(block, block.layernorm_before(x), tokens, attention_mask, **kwargs)) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return block.dropout(block.mlp(block.layernorm_after(x))) + x


@of_layers("pixio.PixioLayer")
class PixioLayer(HuggingFaceLayer):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        y = attend(block, block.layernorm_before(x), tokens, attention_mask, **kwargs)
        return block.drop_path(block.dropout(y)) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.dropout(block.mlp(block.layernorm_after(x)))) + x


@of_layers("vit_mae.ViTMAELayer")
class ViTMAELayer(ViTLayer):
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


@of_layers("dinov2.Dinov2Layer", "dinov2_with_registers.Dinov2WithRegistersLayer", "eomt.EomtLayer")
class Dinov2Layer(HuggingFaceLayer):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        y = attend(block, block.norm1(x), tokens, attention_mask, **kwargs)
        return block.drop_path(block.layer_scale1(y)) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


@of_layers("dinov3_vit.DINOv3ViTLayer", "eomt_dinov3.EomtDinov3Layer", "sapiens2.Sapiens2Layer")
class DINOv3ViTLayer(Dinov2Layer):
    projection = "embeddings.patch_embeddings"

    @staticmethod
    def attention_half(
        block: Any,
        x: Tensor,
        tokens: LayerTokens,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        assert position_embeddings is not None
        cosine, sine = (angles[0] for angles in position_embeddings)
        unturned = torch.stack([torch.ones_like(cosine), torch.zeros_like(sine)])
        angles = tokens.average_patches(  # [..., 2, 1 for all heads, N, D]
            torch.stack(position_embeddings)[:, None], neutral=unturned[:, None]
        )
        return Dinov2Layer.attention_half(
            block, x, tokens, attention_mask, position_embeddings=angles.unbind(-4), **kwargs
        )


@of_layers("beit.BeitLayer")
class BeitLayer(HuggingFaceLayer):
    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        return block.relative_position_bias is None and HuggingFaceLayer.packs(block, *args, **kwargs)

    @staticmethod
    def attention_half(
        block: Any,
        x: Tensor,
        tokens: LayerTokens,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if block.relative_position_bias is not None:
            assert resolution is not None
            grid = (resolution[0] // block.patch_size, resolution[1] // block.patch_size)
            bias = relative_bias(block.relative_position_bias, grid, interpolate_pos_encoding, x, tokens)
            if tokens.token_map is not None:
                tokens = tokens.plus(bias)
            else:
                attention_mask = bias if attention_mask is None else bias + attention_mask
        y = attend(block, block.layernorm_before(x), tokens, attention_mask, **kwargs)
        return block.drop_path(block.lambda_1 * block.dropout(y)) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.lambda_2 * block.dropout(block.mlp(block.layernorm_after(x)))) + x


@of_layers("data2vec.Data2VecVisionLayer")
class Data2VecVisionLayer(HuggingFaceLayer):
    @staticmethod
    def attention_half(
        block: Any,
        x: Tensor,
        tokens: LayerTokens,
        output_attentions: bool = False,
        relative_position_bias: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
    ) -> Tensor:
        if output_attentions:
            raise ValueError(
                "output_attentions=True: Data2VecVisionLayer returns its attention map beside its tokens, where those "
                "of merged layers do not fit. Call remove_algm first"
            )
        attention, bias = block.attention, relative_position_bias
        inner = attention.attention
        if inner.has_relative_position_bias and tokens.token_map is not None:
            assert resolution is not None
            grid = (resolution[0] // inner.config.patch_size, resolution[1] // inner.config.patch_size)
            own = relative_bias(inner.relative_position_bias, grid, interpolate_pos_encoding, x, tokens)
            tokens = tokens.plus(own)
            attention = altered(attention, attention=altered(inner, has_relative_position_bias=False))
        y, *_ = attention(
            block.layernorm_before(x),
            relative_position_bias=tokens.attention_mask(bias),
            interpolate_pos_encoding=interpolate_pos_encoding,
            resolution=resolution,
        )
        return block.drop_path(y if block.lambda_1 is None else block.lambda_1 * y) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = block.output(block.intermediate(block.layernorm_after(x)))
        return block.drop_path(y if block.lambda_2 is None else block.lambda_2 * y) + x

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return True

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        return False

    @staticmethod
    def pack(block: Any, x: Tensor) -> tuple[Tensor]:
        return (x,)


@of_layers("dpt.DPTViTLayer")
class DPTViTLayer(HuggingFaceLayer):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, **kwargs: Any) -> Tensor:
        return attend(block, block.layernorm_before(x), tokens, None, **kwargs) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return block.output(block.intermediate(block.layernorm_after(x)), x)


@of_layers(
    "clip.CLIPEncoderLayer",
    "siglip.SiglipEncoderLayer",
    "altclip.AltCLIPEncoderLayer",
    "chinese_clip.ChineseCLIPVisionLayer",
    "clipseg.CLIPSegEncoderLayer",
    "metaclip_2.MetaClip2EncoderLayer",
    "owlvit.OwlViTEncoderLayer",
    "owlv2.Owlv2EncoderLayer",
)
class CLIPEncoderLayer(HuggingFaceLayer):
    projection = "embeddings.patch_embedding"

    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        return x + attend(block, block.layer_norm1(x), tokens, attention_mask, **kwargs)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))


@of_layers("siglip2.Siglip2EncoderLayer")
class Siglip2EncoderLayer(CLIPEncoderLayer):
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
    "deit.DeiTModel",
    "ijepa.IJepaModel",
    "vit_msn.ViTMSNModel",
    "vit_mae.ViTMAEModel",
    "pixio.PixioModel",
    "beit.BeitModel",
    "dinov2.Dinov2Encoder",
    "dinov2_with_registers.Dinov2WithRegistersEncoder",
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
def last_layer(runner: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Other layers are read by hooks (output_hidden_states), which are seen without this."""
    return [len(runner.layer if hasattr(runner, "layer") else runner.layers) - 1]


@reads(f"{modeling('data2vec.Data2VecVisionEncoder')}.forward")
def data2vec_layers(
    encoder: Any,
    hidden_states: Tensor,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    interpolate_pos_encoding: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Iterable[int]:
    last = len(encoder.layer) - 1
    return range(last + 1) if output_hidden_states or interpolate_pos_encoding else [last]


def attend(block: Any, y: Tensor, tokens: LayerTokens, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
    """The block's attention on normed tokens [B, L, D]."""
    attention, bias = attention_of(block), bias_of(block, tokens, attention_mask)
    if tokens.image is not None and kwargs.get("output_attentions", gives_maps(attention)):
        raise ValueError(
            "output_attentions=True: the images of this batch are left with different numbers of tokens, whose "
            "attention maps make no batch. Set model.algm.batch = 'min', or give one image at a time"
        )
    if not is_pair(attention):
        return attention(y, attention_mask=bias, **kwargs)[0]
    return attention(y, **kwargs) if bias is None else attention(y, position_bias=bias, **kwargs)


def bias_of(block: Any, tokens: LayerTokens, mask: Tensor | None) -> Tensor | None:
    """Mask and key bias in one, for attention that can add them."""
    if tokens.token_map is None or (mask is None and tokens.key_bias is None):
        return mask
    attention = attention_of(block)
    if not takes_bias(attention):
        raise ValueError(
            f"attn_implementation={implementation(attention)!r} takes neither an attention mask of merged tokens nor "
            f"the bias of proportional_attention=True in {type(block).__name__}. Call "
            "model.set_attn_implementation('sdpa'), or set model.algm.proportional_attention = False and pass no mask"
        )
    return tokens.attention_mask(mask)


def attention_of(block: Any) -> Any:
    return block.self_attn if hasattr(block, "self_attn") else block.attention


def is_pair(attention: Any) -> bool:
    """Whether attention consists of ``attention`` and ``output``: DPT's; DINOv2's in older versions."""
    return hasattr(attention, "attention")


def implementation(attention: Any) -> str | None:
    return (attention.attention if is_pair(attention) else attention).config._attn_implementation


def gives_maps(attention: Any) -> bool:
    """Whether its config asks for attention maps."""
    return getattr((attention.attention if is_pair(attention) else attention).config, "output_attentions", False)


def takes_bias(attention: Any) -> bool:
    """Whether what computes attention adds a float mask to its logits. None runs as eager."""
    return implementation(attention) in (("sdpa",) if is_pair(attention) else ("sdpa", "eager", None))


def relative_bias(bias: Any, grid: tuple[int, int], interpolate: bool, x: Tensor, tokens: LayerTokens) -> Tensor:
    """A relative position bias [B or 1, heads, L, L] for the tokens ``x`` [B, L, D].

    On the square grid that its table is made for, of the groups alone; else of all tokens first, as the module scales
    its table (one that is not square to any grid, the sides being swapped).
    """
    if tokens.token_map is None:
        return bias(grid, interpolate, dim_size=x.shape[1])
    if (grid[0], grid[0]) == grid == tuple(bias.window_size) and not interpolate:
        index = bias.generate_relative_position_index(grid).to(x.device)
        return look_up(bias.relative_position_bias_table, index, tokens.token_map)
    return tokens.token_map.pair(bias(grid, interpolate, dim_size=tokens.token_map.labels.shape[1]))
