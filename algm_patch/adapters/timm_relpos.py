"""Split the blocks of timm's VisionTransformerRelPos, with relative biases from a table or computed by an MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from ..core.token_map import TokenMap
from .attention import bias_between_groups, check_not_hooked, split_heads, weigh_values, why_unknown_attention
from .cost import BlockCost, block_cost, layers_in
from .registry import register
from .timm_parts import TimmBlock
from .timm_trunks import register_trunk

RELPOS = "timm.models.vision_transformer_relpos"


class RelPosAdapter(TimmBlock):
    """Provide what is the same for both blocks."""

    @classmethod
    def cost(cls, block: Any) -> BlockCost:
        return block_cost(block, cls.mlp_half, positional=position_mlps(block))

    @staticmethod
    def position_cost(trunk: Any, grid: tuple[int, int]) -> int:
        """Return the operations of every RelPosMlp, which runs on each offset between two places of the grid."""
        return sum(
            2 * position_mlp.rel_coords_log[..., 0].numel() * layer.weights
            for position_mlp in position_mlps(trunk)
            for layer in layers_in(position_mlp)
        )

    @staticmethod
    def refusal(block: Any) -> str | None:
        return why_unknown_attention(block.attn, f"{RELPOS}.RelPosAttention.forward")

    @staticmethod
    def takes_mask(block: Any) -> bool:
        return True


@register(f"{RELPOS}.RelPosBlock.forward")
class RelPosBlock(RelPosAdapter):
    """Split a block that norms its tokens before attention and MLP."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos: Any = None) -> Tensor:
        return x + block.drop_path1(block.ls1(attend(block.attn, block.norm1(x), tokens, shared_rel_pos)))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


@register(f"{RELPOS}.ResPostRelPosBlock.forward")
class ResPostRelPosBlock(RelPosAdapter):
    """Split a block that norms what attention and MLP return."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, shared_rel_pos: Any = None) -> Tensor:
        return x + block.drop_path1(block.norm1(attend(block.attn, x, tokens, shared_rel_pos)))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.norm2(block.mlp(x)))


def attend(attention: Any, x: Tensor, tokens: LayerTokens, shared_bias: Tensor | None) -> Tensor:
    """Return the attention of the tokens [B, L, D] that are left, with their own bias or the shared one.

    Args:
        shared_bias: [1, heads, P+N, P+N] of all tokens, which attention uses if it has no bias of its own; None:
            nothing.
    """
    if tokens.token_map is None:
        return attention(x, shared_rel_pos=shared_bias)
    if attention.rel_pos is None:
        return attention(x, shared_rel_pos=tokens.attention_mask(shared_bias))
    check_not_hooked(attention)  # it is computed from its parts: by itself, it would add the bias of all tokens
    query, key, value = split_heads(attention.qkv(x), attention.num_heads)
    mask = tokens.plus(own_bias_between_groups(attention.rel_pos, tokens.token_map)).attention_mask(None)
    return weigh_values(attention, attention.q_norm(query), attention.k_norm(key), value, mask)


def own_bias_between_groups(rel_pos: Any, token_map: TokenMap) -> Tensor:
    """Return what ``rel_pos.get_bias()`` gives for the groups' first members alone.

    Args:
        rel_pos: timm's RelPosBias, or its RelPosMlp, which has no bias of the prefix and adds zeros for it.

    Returns:
        [B, heads, P+M, P+M].
    """
    size, prefix = rel_pos.bias_shape[0], token_map.labels.shape[1] - rel_pos.bias_shape[0]
    index = rel_pos.relative_position_index.view(size, size)
    bias = bias_between_groups(bias_table(rel_pos), index, token_map.without_prefix(prefix))
    return nn.functional.pad(bias, [prefix, 0, prefix, 0])


def bias_table(rel_pos: Any) -> Tensor:
    """Return the biases [T, heads] that a RelPosBias holds, or a RelPosMlp computes, of each offset between places."""
    if not hasattr(rel_pos, "mlp"):
        return rel_pos.relative_position_bias_table
    table = rel_pos.bias_act(rel_pos.mlp(rel_pos.rel_coords_log).flatten(0, 1))
    return table if rel_pos.bias_gain is None else rel_pos.bias_gain * table


def position_mlps(module: nn.Module) -> list[Any]:
    """Return every RelPosMlp in a module."""
    return [part for part in module.modules() if hasattr(part, "rel_coords_log")]


register_trunk(f"{RELPOS}.VisionTransformerRelPos")
