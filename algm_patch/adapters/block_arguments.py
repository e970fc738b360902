"""Read what a block's forward is given beside its tokens, by name, and fit it to the tokens that are left."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .huggingface_parts import arguments_by_name, parameter_names
from .unpatched import unpatched

# By what they hold: the names that arguments of blocks, and of their attention, have.
POSITIONS = ("pos", "xpos", "positions")  # [B, P+N, 2]: row and column of every token
ROTATIONS = ("rope", "rope_or_rope_list", "position_embeddings")  # sines and cosines [..., N, D] of the patches
BIASES = ("rel_pos_bias", "shared_rel_pos_bias", "shared_rel_pos")  # [heads, P+N, P+N], added to the logits
SIZES = ("H", "W", "patch_resolution")  # of the grid of all patches
KINDS = (POSITIONS, ROTATIONS, BIASES, SIZES)


def kind_of(name: str) -> Sequence[str]:
    """Return the names of the arguments that hold the same as the one of this name; none if it is not known."""
    return next((names for names in KINDS if name in names), ())


def known_arguments(block: nn.Module) -> list[str]:
    """Return the names of the arguments of a block's forward, after its tokens, that are known."""
    return [name for name in parameter_names(unpatched(type(block)).forward) if kind_of(name)]


def required_arguments(block: nn.Module) -> list[str]:
    """Return the names of the arguments of a block's forward, after its tokens, that it needs."""
    parameters = list(inspect.signature(unpatched(type(block)).forward).parameters.values())[2:]
    return [each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]


def name_in(attention: nn.Module, name: str) -> str | None:
    """Return the name under which attention takes an argument of its block; None if it takes none of its kind."""
    names = parameter_names(type(attention).forward)
    return next((other for other in (name, *kind_of(name)) if other in names), None)


def why_arguments_do_not_fit(block: nn.Module, attention: nn.Module) -> str | None:
    """Return which argument of a block's forward cannot be fitted to merged tokens; None if all can."""
    for name, parameter in list(inspect.signature(unpatched(type(block)).forward).parameters.items())[2:]:
        if not kind_of(name) and parameter.default not in (None, False):
            return name
        if kind_of(name) and name not in SIZES and name_in(attention, name) is None:
            return name
    return None


def given_arguments(block: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a block's forward is given beside its tokens, by name.

    Raises:
        ValueError: if one of them is none whose dependence on the order of the tokens is known.
    """
    named = arguments_by_name(block, args, kwargs)
    given = {name: value for name, value in named.items() if value is not None and value is not False}
    for name in given:
        if not kind_of(name):
            raise ValueError(
                f"{type(block).__name__} was given {name} beside its tokens, and ALGM does not know how it depends on "
                "their places. Leave it out, or call remove_algm first"
            )
    return given


def fitted(tokens: LayerTokens, name: str, value: Any, held: bool) -> Any:
    """Return an argument of a block, given for all tokens, as its attention takes it for those that are left.

    Args:
        held: positions go to a rotary embedding that attention holds, which turns all members of a group.
    """
    if name in POSITIONS:
        return tokens.own(value) if held else tokens.take(value)
    if name in ROTATIONS:
        return averages(tokens, value) if isinstance(value, Tensor) else tuple(averages(tokens, part) for part in value)
    return tokens.pair(value) if name in BIASES else value


def of_images(value: Any, images: Tensor) -> Any:
    """Return an argument of a block for some images of a batch: all of it, if the batch shares it."""
    if isinstance(value, tuple):
        return tuple(of_images(part, images) for part in value)
    batched = isinstance(value, Tensor) and value.shape[0] > 1 and (value.dim() == 4 or not value.is_floating_point())
    return value[images] if batched else value


def averages(tokens: LayerTokens, angles: Tensor) -> Tensor:
    """Return the sines or cosines of the patches that are left.

    Args:
        angles: of all patches: [N, D], [heads, N, D] or [B, 1 or heads, N, D].

    Returns:
        [B, 1 or heads, M, D]; ``angles`` itself while nothing is merged.
    """
    if tokens.token_map is None:
        return angles
    found = tokens.average_patches(angles, batched=angles.dim() == 4)
    return found[:, None] if found.dim() == 3 else found
