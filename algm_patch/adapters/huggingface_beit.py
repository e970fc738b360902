"""Split the blocks of transformers' BEiT and Data2Vec, whose attention has relative position biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..core.layer_tokens import LayerTokens
from .attention import bias_between_groups, check_not_hooked, why_unknown_attention
from .huggingface import Layer, register_layers
from .huggingface_attention import attend, attention_of, check_maps, implementation, inner_attention, is_pair
from .huggingface_parts import arguments_by_name, norm_before, residual_branch, tokens_in
from .huggingface_runners import layers_read
from .libraries import transformers_path
from .registry import reads_blocks

# Attention that adds its own bias inside: that of Data2Vec, and of BEiT before transformers 5.9.
BIASED_INSIDE = tuple(
    f"{transformers_path(name)}{kind}SelfAttention.forward"
    for name in ("beit.Beit", "data2vec.Data2VecVision")
    for kind in ("", "Sdpa")
)


@register_layers("beit.BeitLayer", "data2vec.Data2VecVisionLayer")
class BeitLayer(Layer):
    """Split a block whose own bias is added in front of its attention, or inside it, beside a shared one."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments_by_name(block, args, kwargs)
        half = biased_inside if is_pair(attention_of(block)) else biased_in_front
        return residual_branch(block, 1, half(block, x, tokens, given)) + x

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        shared = arguments_by_name(block, args, kwargs).get("relative_position_bias")
        return shared is None and bias_of(block) is None and Layer.packs(block, *args, **kwargs)


def biased_in_front(block: Any, x: Tensor, tokens: LayerTokens, given: dict[str, Any]) -> Tensor:
    """Return the attention of a block that adds its own bias to the attention mask."""
    interpolate, resolution = given.pop("interpolate_pos_encoding", False), given.pop("resolution", None)
    if bias_of(block) is not None:
        bias = relative_bias(bias_of(block), grid_of(resolution, block.patch_size), interpolate, x, tokens)
        if tokens.token_map is not None:
            tokens = tokens.plus(bias)
        else:
            mask = given.get("attention_mask")
            given["attention_mask"] = bias if mask is None else bias + mask
    return attend(block, norm_before(block, 1)(x), tokens, given)


def biased_inside(block: Any, x: Tensor, tokens: LayerTokens, given: dict[str, Any]) -> Tensor:
    """Return the attention of a block whose attention adds its own bias and the shared one that it is given."""
    check_maps(block, tokens, given)
    attention, y = block.attention, norm_before(block, 1)(x)
    if tokens.token_map is None:
        return tokens_in(attention(y, **given))
    shared = given.pop("relative_position_bias", None)
    if bias_of(block) is None:
        return tokens_in(attention(y, **given, relative_position_bias=tokens.attention_mask(shared)))
    grid = grid_of(given.get("resolution"), attention.attention.config.patch_size)
    bias = relative_bias(bias_of(block), grid, given.get("interpolate_pos_encoding", False), x, tokens)
    mask = tokens.plus(bias).attention_mask(shared)
    assert mask is not None
    return attend_with_head_mask(attention, y, mask, given.get("head_mask"))


def attend_with_head_mask(attention: Any, x: Tensor, mask: Tensor, head_mask: Tensor | None) -> Tensor:
    """Compute what a pair of attention and output does, with a mask in place of its own bias.

    Args:
        x: [B, L, D].
        mask: broadcastable to [B, heads, L, L], added to the logits.
        head_mask: broadcastable to the same, multiplied with the weights; None: nothing.

    Raises:
        ValueError: if the class of attention is not known, or hooks wait for a call of it, which is not made.
    """
    inner = attention.attention
    reason = why_unknown_attention(inner, *BIASED_INSIDE)
    if reason is not None:
        raise ValueError(f"merged tokens cannot go through this block: {reason}. Call remove_algm first")
    for module in (attention, inner):
        check_not_hooked(module, "query, key or value")
    heads, scale = (inner.num_attention_heads, inner.attention_head_size), inner.attention_head_size**-0.5
    query, key, value = (part(x).unflatten(-1, heads).transpose(1, 2) for part in (inner.query, inner.key, inner.value))
    if implementation(attention) == "sdpa" and head_mask is None:
        rate = inner.dropout.p if inner.training else 0.0
        y = scaled_dot_product_attention(query, key, value, mask.to(query.dtype), rate, scale=scale)
    else:
        weights = inner.dropout(((query @ key.mT) * scale + mask).softmax(-1))
        y = (weights if head_mask is None else weights * head_mask) @ value
    return attention.output(y.transpose(1, 2).flatten(2), x)


def bias_of(block: Any) -> Any:
    """Return the module that computes the block's own relative position bias; None if it has none."""
    holder = inner_attention(attention_of(block)) if is_pair(attention_of(block)) else block
    return getattr(holder, "relative_position_bias", None)


def grid_of(resolution: tuple[int, int] | None, patch_size: int) -> tuple[int, int]:
    """Return the grid (H, W) of an image of this size."""
    assert resolution is not None  # blocks with a bias are given it
    return resolution[0] // patch_size, resolution[1] // patch_size


def relative_bias(bias: Any, grid: tuple[int, int], interpolate: bool, x: Tensor, tokens: LayerTokens) -> Tensor:
    """Return a relative position bias [B or 1, heads, L, L] for the tokens ``x`` [B, L, D].

    On the square grid that its table is made for, it is looked up for the groups alone; else it is computed for all
    tokens first, as the module scales its table (one that is not square to any grid, the sides being swapped).
    """
    if tokens.token_map is None:
        return bias(grid, interpolate, dim_size=x.shape[1])
    if (grid[0], grid[0]) == grid == tuple(bias.window_size) and not interpolate:
        index = bias.generate_relative_position_index(grid).to(x.device)
        return bias_between_groups(bias.relative_position_bias_table, index, tokens.token_map)
    return tokens.token_map.pair(bias(grid, interpolate, dim_size=tokens.token_map.labels.shape[1]))


@reads_blocks(
    f"{transformers_path('beit.BeitEncoder')}.forward",
    f"{transformers_path('data2vec.Data2VecVisionEncoder')}.forward",
)
def biased_layers_read(encoder: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return all layers if the shared bias is resized to the length of each layer's input, which must be whole then."""
    resized = arguments_by_name(encoder, args[1:], kwargs).get("interpolate_pos_encoding")
    return range(len(encoder.layer)) if resized else layers_read(encoder, *args, **kwargs)
