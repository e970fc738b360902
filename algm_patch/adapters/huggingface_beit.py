"""Blocks of transformers' BEiT and Data2Vec, whose attention has relative position biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .attention import altered, look_up
from .huggingface import Layer, layers_read, modeling, of_layers
from .huggingface_parts import arguments, attend, attention_of, branch, check_maps, core, first, is_pair, norm
from .registry import reads


@of_layers("beit.BeitLayer", "data2vec.Data2VecVisionLayer")
class BeitLayer(Layer):
    """A block with a bias of its own in front of its attention, or inside it with a shared one as argument."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments(block, args, kwargs)
        half = biased_inside if is_pair(attention_of(block)) else biased_in_front
        return branch(block, 1, half(block, x, tokens, given)) + x

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        shared = arguments(block, args, kwargs).get("relative_position_bias")
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
    return attend(block, norm(block, 1)(x), tokens, given)


def biased_inside(block: Any, x: Tensor, tokens: LayerTokens, given: dict[str, Any]) -> Tensor:
    """Return the attention of a block whose attention adds its own bias and the shared one that it is given."""
    check_maps(block, tokens, given)
    attention, inner = block.attention, core(block.attention)
    if tokens.token_map is not None:
        if bias_of(block) is not None:
            grid = grid_of(given.get("resolution"), inner.config.patch_size)
            interpolate = given.get("interpolate_pos_encoding", False)
            tokens = tokens.plus(relative_bias(bias_of(block), grid, interpolate, x, tokens))
            attention = altered(attention, attention=altered(inner, has_relative_position_bias=False))
        given["relative_position_bias"] = tokens.attention_mask(given.get("relative_position_bias"))
    return first(attention(norm(block, 1)(x), **given))


def bias_of(block: Any) -> Any:
    """Return the module that computes the block's own relative position bias; None if it has none."""
    holder = core(attention_of(block)) if is_pair(attention_of(block)) else block
    return getattr(holder, "relative_position_bias", None)


def grid_of(resolution: tuple[int, int] | None, patch_size: int) -> tuple[int, int]:
    """Return the grid (H, W) of an image of this size."""
    assert resolution is not None  # blocks with a bias are given it
    return resolution[0] // patch_size, resolution[1] // patch_size


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


@reads(*(f"{modeling(name)}.forward" for name in ("beit.BeitEncoder", "data2vec.Data2VecVisionEncoder")))
def biased_layers_read(encoder: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return all layers if the shared bias is resized to the length of each layer's input, which must be whole then."""
    resized = arguments(encoder, args[1:], kwargs).get("interpolate_pos_encoding")
    return range(len(encoder.layer)) if resized else layers_read(encoder, *args, **kwargs)
