"""timm's plain vision transformers and their blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from ..core.token_map import TokenMap
from .attention import altered, is_own, look_up
from .base import Adapter
from .cost import BlockCost, block_cost, layers_in
from .features import input_projection
from .registry import path_of, reads, refuse, register

VIT = "timm.models.vision_transformer"
EVA = "timm.models.eva"
BEIT = "timm.models.beit"
RELPOS = "timm.models.vision_transformer_relpos"
NAFLEX = "timm.models.naflexvit"
QWEN = "timm.models.qwen3_vit"
DEEPSEEK = "timm.models.deepseek_vit"


DIFFERENTIAL = "timm.layers.diff_attention.DiffAttention.forward"
# Attention whose tokens meet in fused attention alone, if it is set to fuse.
PLAIN_ATTENTION = (
    "timm.layers.attention.Attention.forward",
    "timm.layers.attention.AttentionRope.forward",
    DIFFERENTIAL,
    f"{EVA}.EvaAttention.forward",
)


class TimmBlock(Adapter):
    projection = ("patch_embed.proj", "embeds")

    @staticmethod
    def packs(block: Any, *args: Any, attn_mask: Any = None, **kwargs: Any) -> bool:
        attentions = [part.attn for part in getattr(block, "attns", [block])]
        return not args and attn_mask is None and all(map(fuses, attentions))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return takes_mask(block.attn)

    @staticmethod
    def features(block: Any, metric: str) -> tuple[str, int | None] | None:
        return input_projection(block, "attn", metric)

    @classmethod
    def cost(cls, block: Any) -> BlockCost:
        cost = block_cost(block, cls.mlp_half)
        # Differential attention: two maps, each of half the queries and keys, each multiplied with all values.
        differential = any(path_of(type(part).forward) == DIFFERENTIAL for part in block.modules())
        return replace(cost, pairs=cost.pairs * 3 // 2) if differential else cost

    @staticmethod
    def grid(projection: Any, output: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        if path_of(type(projection).forward) == f"{NAFLEX}.NaFlexEmbeds.forward":
            return naflex_grid(projection, *args, **kwargs)
        return Adapter.grid(projection, output)


@register(f"{VIT}.Block.forward")
class Block(TimmBlock):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, attn_mask, is_causal)
        return x + block.drop_path1(block.ls1(y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


@register(f"{VIT}.ResPostBlock.forward")
class ResPostBlock(TimmBlock):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, x, tokens, attn_mask, is_causal)
        return x + block.drop_path1(block.norm1(y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.norm2(block.mlp(x)))


@register(f"{VIT}.ParallelThingsBlock.forward")
class ParallelThingsBlock(TimmBlock):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        def branch(part: Any) -> Tensor:
            return part.drop_path(part.ls(attend(part.attn, part.norm(x), tokens, attn_mask, is_causal)))

        return x + torch.stack([branch(part) for part in block.attns]).sum(dim=0)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + torch.stack([part(x) for part in block.ffns]).sum(dim=0)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return all(takes_mask(part.attn) for part in block.attns)

    @staticmethod
    def features(block: Any, metric: str) -> None:
        return None  # each of its attentions has its own


@register(f"{EVA}.EvaBlock.forward")
class EvaBlock(TimmBlock):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, rope: Any = None, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, block.norm1(x), tokens, attn_mask, is_causal, rope)
        return x + block.drop_path1(scaled(block.gamma_1, y))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(scaled(block.gamma_2, block.mlp(block.norm2(x))))


@register(f"{EVA}.EvaBlockPostNorm.forward")
class EvaBlockPostNorm(TimmBlock):
    @staticmethod
    def attention_half(
        block: Any, x: Tensor, tokens: LayerTokens, rope: Any = None, attn_mask: Any = None, is_causal: Any = False
    ) -> Tensor:
        y = attend(block.attn, x, tokens, attn_mask, is_causal, rope)
        return x + block.drop_path1(block.norm1(y))

    mlp_half = staticmethod(ResPostBlock.mlp_half)


@register(f"{DEEPSEEK}.DeepseekVitBlock.forward")
class DeepseekVitBlock(TimmBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, rope: Any = None) -> Tensor:
        return x + block.drop_path1(attend(block.attn, block.norm1(x), tokens, rope=rope))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.mlp(block.norm2(x)))


@register(f"{BEIT}.Block.forward")
class BeitBlock(TimmBlock):
    """Its attention computes a bias of its own for the whole grid and adds the shared one."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos_bias: Any = None) -> Tensor:
        attention, bias = block.attn, shared_rel_pos_bias
        if tokens.token_map is not None:
            if attention.relative_position_bias_table is not None:
                table, index = attention.relative_position_bias_table, attention.relative_position_index
                tokens = tokens.plus(look_up(table, index, tokens.token_map))
                attention = altered(attention, relative_position_bias_table=None)
            bias = tokens.attention_mask(bias)
        return x + block.drop_path1(scaled(block.gamma_1, attention(block.norm1(x), shared_rel_pos_bias=bias)))

    mlp_half = staticmethod(EvaBlock.mlp_half)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return True


class RelPosBlock(TimmBlock):
    @classmethod
    def cost(cls, block: Any) -> BlockCost:
        return block_cost(block, cls.mlp_half, apart=position_functions(block))

    @staticmethod
    def position_cost(trunk: Any, grid: tuple[int, int]) -> int:
        """Return the operations of every RelPosMlp, which runs on each offset between two places of the grid."""
        return sum(
            2 * found.rel_coords_log[..., 0].numel() * layer.weights
            for found in position_functions(trunk)
            for layer in layers_in(found)
        )

    @staticmethod
    def attend(attention: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos: Any) -> Tensor:
        if tokens.token_map is None:
            return attention(x, shared_rel_pos=shared_rel_pos)
        if attention.rel_pos is not None:
            tokens = tokens.plus(bias_between_groups(attention.rel_pos, tokens.token_map))
            attention, shared_rel_pos = altered(attention, rel_pos=None), None
        return attention(x, shared_rel_pos=tokens.attention_mask(shared_rel_pos))

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return True


@register(f"{RELPOS}.RelPosBlock.forward")
class PreNormRelPosBlock(RelPosBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos: Any = None) -> Tensor:
        y = RelPosBlock.attend(block.attn, block.norm1(x), tokens, shared_rel_pos)
        return x + block.drop_path1(block.ls1(y))

    mlp_half = staticmethod(Block.mlp_half)


@register(f"{RELPOS}.ResPostRelPosBlock.forward")
class ResPostRelPosBlock(RelPosBlock):
    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos: Any = None) -> Tensor:
        return x + block.drop_path1(block.norm1(RelPosBlock.attend(block.attn, x, tokens, shared_rel_pos)))

    mlp_half = staticmethod(ResPostBlock.mlp_half)


FUSED = "its attention and MLP share one residual, so there is no place between them to merge"
WINDOWED = "its attention runs in windows of a full grid, which merged tokens no longer form"
HIERARCHICAL = "it pools a full grid from stage to stage, which merged tokens no longer form"
refuse(f"{VIT}.ParallelScalingBlock.forward", FUSED)
refuse(f"{VIT}.DiffParallelScalingBlock.forward", FUSED)
refuse("timm.models.swin_transformer.SwinTransformerBlock.forward", WINDOWED)
refuse("timm.models.swin_transformer_v2.SwinTransformerV2Block.forward", WINDOWED)
refuse("timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock.forward", WINDOWED)
refuse("timm.models.vision_transformer_sam.Block.forward", WINDOWED)
refuse("timm.models.hiera.HieraBlock.forward", HIERARCHICAL)
refuse("timm.models.hieradet_sam2.MultiScaleBlock.forward", HIERARCHICAL)
refuse("timm.models.mvitv2.MultiScaleBlock.forward", HIERARCHICAL)
refuse("timm.models.pvt_v2.Block.forward", HIERARCHICAL)


TRUNKS = (
    f"{VIT}.VisionTransformer",
    f"{EVA}.Eva",
    f"{BEIT}.Beit",
    f"{RELPOS}.VisionTransformerRelPos",
    f"{NAFLEX}.NaFlexVit",
    f"{QWEN}.Qwen3VitEncoder",
    f"{DEEPSEEK}.DeepseekVitEncoder",
)


@reads(*(f"{trunk}.forward_features" for trunk in TRUNKS))
def forward_features(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    return [len(trunk.blocks) - 1]


@reads(*(f"{trunk}.forward_intermediates" for trunk in TRUNKS))
def forward_intermediates(
    trunk: Any,
    x: Tensor,
    indices: Any = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Iterable[int]:
    from timm.models._features import feature_take_indices

    taken, _ = feature_take_indices(len(trunk.blocks), indices)
    return taken if intermediates_only else [*taken, len(trunk.blocks) - 1]


def takes_mask(attention: nn.Module) -> bool:
    return "attn_mask" in inspect.signature(attention.forward).parameters


def fuses(attention: nn.Module) -> bool:
    return is_own(attention, *PLAIN_ATTENTION) and bool(attention.fused_attn)


def attend(
    attention: Any,
    x: Tensor,
    tokens: LayerTokens,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    rope: Tensor | None = None,
) -> Tensor:
    if is_causal:
        raise ValueError(
            "is_causal=True: causal attention goes by the order of the tokens, which merging gives up. "
            "Call remove_algm first"
        )
    inputs: dict[str, Tensor | None] = {}
    if attn_mask is not None or tokens.key_bias is not None:
        inputs["attn_mask"] = tokens.key_bias if attn_mask is None else tokens.attention_mask(attn_mask)
    if rope is not None:
        inputs["rope"] = rotary(tokens, rope)
    return attention(x, **inputs)


def rotary(tokens: LayerTokens, rope: Tensor | None) -> Tensor | None:
    """The angles of the patches that are left, from [N, D], [heads, N, D] or [B, 1 or heads, N, D] of all."""
    if rope is None or tokens.token_map is None:
        return rope
    half = rope.shape[-1] // 2
    unturned = torch.cat([rope.new_zeros(half), rope.new_ones(half)])  # sines and cosines of no angle
    taken = tokens.average_patches(rope, batched=rope.dim() == 4, neutral=unturned)
    return taken[:, None] if taken.dim() == 3 else taken


def scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


def position_functions(module: nn.Module) -> list[Any]:
    """Return every RelPosMlp in a module."""
    return [part for part in module.modules() if hasattr(part, "rel_coords_log")]


def bias_between_groups(rel_pos: Any, token_map: TokenMap) -> Tensor:
    """[B, heads, P+M, P+M]: what ``rel_pos.get_bias()`` gives, for the first members of the groups alone.

    Without the biases between all tokens, which would cost as much as in the unpatched model.
    """
    size, _, heads = rel_pos.bias_shape  # RelPosMlp has none of the prefix, and adds zeros for it
    prefix = token_map.labels.shape[1] - size
    pairs = token_map.without_prefix(prefix).pair(rel_pos.relative_position_index.view(size, size))[:, 0]
    shape = (pairs.shape[0] * pairs.shape[1], pairs.shape[2], heads)
    fewer = altered(rel_pos, relative_position_index=pairs.flatten(), bias_shape=shape, prefix_tokens=0)
    bias = fewer.get_bias().view(heads, *pairs.shape).transpose(0, 1)
    return nn.functional.pad(bias, [prefix, 0, prefix, 0])


def naflex_grid(
    embeds: Any, x: Tensor, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
) -> tuple[int, int]:
    """(H, W) of an image [B, C, h, w], or of patches if all images have this one grid, whole and in raster order."""
    if patch_coord is None:
        high, wide = embeds.dynamic_feat_size(x.shape[-2:])
        return high, wide
    rows, columns = (int(n) + 1 for n in patch_coord.flatten(0, 1).amax(0))
    raster = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(patch_coord)
    whole = patch_valid is None or bool(patch_valid.all())
    if not whole or patch_coord.shape[1:] != raster.shape or not bool((patch_coord == raster).all()):
        raise ValueError(
            "the patches of this batch are not one whole grid: images of several grids, or padding. ALGM merges in "
            "windows of a grid. Give images of one size a batch, without padding"
        )
    return rows, columns
