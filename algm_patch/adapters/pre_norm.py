"""Split any block that norms its tokens before attention and before its MLP, with parts of ordinary names."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention_parts import attend_by_parts, compared_projection, has_parts, part_of
from .block_arguments import known_arguments
from .key_bias import with_key_bias
from .registry import structure
from .structure import Structure

NORM_1 = ("norm1", "norm_1", "ln1", "ln_1", "layernorm_before", "layer_norm1", "layer_norm_1", "attn_norm", "norm_attn")
NORM_2 = ("norm2", "norm_2", "ln2", "ln_2", "layernorm_after", "layer_norm2", "layer_norm_2", "ffn_norm", "norm_mlp")
ATTENTION = ("attn", "attention", "self_attn", "self_attention", "msa", "mhsa")
MLP = ("mlp", "ffn", "feed_forward", "feedforward", "ff")
SCALE_1 = ("ls1", "gamma_1", "gamma1", "layer_scale1", "layer_scale_1", "ls_1", "lambda1")
SCALE_2 = ("ls2", "gamma_2", "gamma2", "layer_scale2", "layer_scale_2", "ls_2", "lambda2")
DROP_1 = ("drop_path1", "drop_path_1", "drop_path", "stochastic_depth")
DROP_2 = ("drop_path2", "drop_path_2", "drop_path", "stochastic_depth")


class PreNorm(Structure):
    """Provide what is the same whatever attention makes of the sizes of merged tokens."""

    @staticmethod
    def attend(block: Any, y: Tensor, tokens: LayerTokens) -> Any:
        """Return attention on normed tokens: what its module returns, or the tokens [B, L, D] alone."""
        raise NotImplementedError

    @classmethod
    def attention_half(cls, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        check_nothing_given(block, args, kwargs)
        y = cls.attend(block, part_of(block, NORM_1)(x), tokens)
        return x + scaled(y[0] if isinstance(y, tuple) else y, part_of(block, SCALE_1), part_of(block, DROP_1))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = part_of(block, MLP)(part_of(block, NORM_2)(x))
        return x + scaled(y, part_of(block, SCALE_2), part_of(block, DROP_2))

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block has norms, attention and MLP, and takes only ``x``: see `Structure.fits`."""
        parts = all(isinstance(part_of(block, names), nn.Module) for names in (NORM_1, ATTENTION, NORM_2, MLP))
        return parts and takes_one(block) and not known_arguments(block)


@structure
class PreNormByParts(PreNorm):
    """Split a block whose attention can be computed from its parts."""

    @staticmethod
    def attend(block: Any, y: Tensor, tokens: LayerTokens) -> Any:
        """Return attention: with the weights of merged keys, and of packed images, it is computed from its parts."""
        attention = part_of(block, ATTENTION)
        if tokens.packing is None and tokens.key_bias is None:
            return attention(y)
        return attend_by_parts(attention, y, tokens.key_bias)

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether attention, too, has parts of ordinary names: see `Structure.fits`."""
        return PreNorm.fits(block) and has_parts(part_of(block, ATTENTION))

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        """Return whether attention has no hooks: computed from its parts, it takes packed images."""
        return not part_of(block, ATTENTION)._forward_hooks

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        """Return where attention leaves queries, keys or values: see `Adapter.features`."""
        return compared_projection(block, ATTENTION, compare)


@structure
class PreNormBySoftmax(PreNorm):
    """Split a block whose attention gives its logits to ``softmax`` or to fused attention."""

    @staticmethod
    def attend(block: Any, y: Tensor, tokens: LayerTokens) -> Any:
        """Return attention, to whose logits the weights of merged keys are added where it computes them."""
        attention = part_of(block, ATTENTION)
        return attention(y) if tokens.key_bias is None else with_key_bias(tokens.key_bias, attention, y)


@structure
class PreNormUnweighed(PreNorm):
    """Split a block whose attention cannot be told of sizes."""

    @staticmethod
    def attend(block: Any, y: Tensor, tokens: LayerTokens) -> Any:
        """Return attention."""
        return part_of(block, ATTENTION)(y)

    @staticmethod
    def takes_mask(block: Any) -> bool:
        """Return False."""
        return False


def scaled(y: Tensor, scale: Any, drop: Any) -> Tensor:
    """Return what is added to the residual: with layer scale, a module or numbers, and stochastic depth, if any."""
    if scale is not None:
        y = scale(y) if isinstance(scale, nn.Module) else scale * y
    return y if drop is None else drop(y)


def takes_one(block: nn.Module) -> bool:
    """Return whether the forward of a block needs nothing but its tokens."""
    parameters = list(inspect.signature(type(block).forward).parameters.values())[1:]
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return bool(positional) and all(
        each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in parameters
        if each is not positional[0]
    )


def check_nothing_given(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ValueError if a block is given more than its tokens, which it was not proved with."""
    given = [*map(str, range(1, len(args) + 1)), *kwargs]
    values = (*args, *kwargs.values())
    used = [name for name, value in zip(given, values, strict=True) if value is not None and value is not False]
    if used:
        raise ValueError(
            f"{type(block).__name__} was given {', '.join(used)} beside its tokens, which ALGM does not know. "
            "Write an Adapter for it and register it: see algm_patch.register. Or call remove_algm first"
        )
