"""Split blocks whose attention is told of places: by arguments of their forward, or by what it holds itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention_parts import compared_projection
from .beit_attention import attend_with_biases
from .block_arguments import (
    BIASES,
    fitted,
    given_arguments,
    known_arguments,
    name_in,
    of_images,
    why_arguments_do_not_fit,
)
from .block_examples import arguments_that_run, check_runs_on_no_more, with_small_tables
from .block_parts import part_of
from .dinov2 import add_branch
from .held_rope import held_rope, with_mean_rotations
from .huggingface_parts import tokens_in
from .key_bias import with_key_bias
from .pre_norm import ATTENTION, DROP_1, DROP_2, MLP, NORM_1, NORM_2, SCALE_1, SCALE_2, PreNorm, scaled
from .registry import structure
from .structure import Call


@structure
class Placed(PreNorm):
    """Split a block that norms its tokens before attention and before the MLP.

    Attention is called itself, with the positions, rotary angles and biases of the tokens that are left. One that holds
    a table of biases is computed from its parts.
    """

    prefix = 1

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block has parts of ordinary names, and is told of places: see `Structure.fits`."""
        attention = part_of(block, ATTENTION)
        if not all(isinstance(part_of(block, names), nn.Module) for names in (NORM_1, ATTENTION, NORM_2, MLP)):
            return False
        told = known_arguments(block) or held_rope(attention) is not None or has_table(attention)
        return bool(told) and why_arguments_do_not_fit(block, attention) is None

    @classmethod
    def attention_half(cls, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = given_arguments(block, args, kwargs)

        def branch(x: Tensor, images: Any) -> Tensor:
            some, theirs = tokens, given
            if isinstance(images, Tensor):  # the others are left out of this branch
                some, theirs = tokens.of_some_images(images), {name: of_images(given[name], images) for name in given}
            y = attend(part_of(block, ATTENTION), part_of(block, NORM_1)(x), some, theirs)
            return scaled(y, part_of(block, SCALE_1), None)

        return add(block, x, branch, DROP_1)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        def branch(x: Tensor, images: Any) -> Tensor:
            return scaled(part_of(block, MLP)(part_of(block, NORM_2)(x)), part_of(block, SCALE_2), None)

        return add(block, x, branch, DROP_2)

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        return compared_projection(block, ATTENTION, compare)

    @staticmethod
    def examples(block: Any, tokens: int, prefix: int) -> Iterable[Call]:
        """Yield what the forward takes of each kind: see `Structure.examples`."""
        attention = part_of(block, ATTENTION)
        with_small_tables(attention, tokens, prefix)
        if has_table(attention):
            check_runs_on_no_more(block, attention, tokens, prefix)
        yield arguments_that_run(block, attention, tokens, prefix)


@structure
class PlacedUnweighed(Placed):
    """Split a block whose attention cannot be told of sizes."""

    @staticmethod
    def takes_mask(block: Any) -> bool:
        """Return False."""
        return False


def attend(attention: Any, y: Tensor, tokens: LayerTokens, given: dict[str, Any]) -> Tensor:
    """Return attention of normed tokens [B, L, D].

    Args:
        given: what the block's forward is given beside its tokens, by name.
    """
    if tokens.token_map is not None and has_table(attention):
        return attend_with_biases(attention, y, tokens, next((given[name] for name in BIASES if name in given), None))
    held = held_rope(attention) is not None
    named = {name_in(attention, name): fitted(tokens, name, value, held) for name, value in given.items()}
    taken = {name: value for name, value in named.items() if name is not None}
    if held and tokens.token_map is not None:
        attention = with_mean_rotations(attention, tokens)
    if tokens.key_bias is None:
        return tokens_in(attention(y, **taken))
    return tokens_in(with_key_bias(tokens.key_bias, attention, y, **taken))


def add(block: Any, x: Tensor, branch: Callable[[Tensor, Any], Tensor], drop_paths: tuple[str, ...]) -> Tensor:
    """Return ``x`` plus what a branch makes of it, with the stochastic depth of the block: see `add_branch`."""
    if hasattr(block, "sample_drop_ratio"):
        return add_branch(block, x, branch)
    return x + scaled(branch(x, slice(None)), None, part_of(block, drop_paths))


def has_table(attention: nn.Module) -> bool:
    """Return whether attention holds a table of biases, which it adds by itself."""
    return getattr(attention, "relative_position_bias_table", None) is not None
