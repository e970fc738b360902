"""Split any block that norms its tokens before attention and before its MLP, with parts of ordinary names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention_parts import attend_by_parts, compared_projection, has_parts
from .block_arguments import known_arguments
from .block_parts import check_nothing_given, part_of, takes_one
from .key_bias import with_key_bias
from .registry import structure
from .structure import Structure

NORM_1 = ("norm1", "norm_1", "ln1", "ln_1", "layernorm_before", "layer_norm1", "layer_norm_1", "attn_norm", "norm_attn")
NORM_2 = ("norm2", "norm_2", "ln2", "ln_2", "layernorm_after", "layer_norm2", "layer_norm_2", "ffn_norm", "norm_mlp")
ATTENTION = ("attn", "attention", "self_attn", "self_attention", "msa", "mhsa")
MLP = ("mlp", "ffn", "feed_forward", "feedforward", "ff")
SCALE_1 = ("ls1", "gamma_1", "gamma1", "layer_scale1", "layer_scale_1", "ls_1", "lambda1")
SCALE_2 = ("ls2", "gamma_2", "gamma2", "layer_scale2", "layer_scale_2", "ls_2", "lambda2")
DROP_1 = ("drop_path1", "drop_path_1", "drop_path", "stochastic_depth", "dropout1", "dropout")
DROP_2 = ("drop_path2", "drop_path_2", "drop_path", "stochastic_depth", "dropout2")


class PreNorm(Structure):
    """Provide what is the same whatever attention makes of the sizes of merged tokens."""

    @staticmethod
    def attend(block: Any, y: Tensor, tokens: LayerTokens) -> Any:
        """Return attention on normed tokens: what it returns, or the tokens [B, L, D] alone."""
        raise NotImplementedError

    @classmethod
    def attention_half(cls, block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            check_nothing_given(block, args, kwargs)
        y = cls.attend(block, part_of(block, NORM_1)(x), tokens)
        return x + scaled(y[0] if isinstance(y, tuple) else y, part_of(block, SCALE_1), part_of(block, DROP_1))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = part_of(block, MLP)(part_of(block, NORM_2)(x))
        return x + scaled(y, part_of(block, SCALE_2), part_of(block, DROP_2))

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block has norms, attention and MLP, and needs only ``x``: see `Structure.fits`."""
        parts = all(callable(part_of(block, names)) for names in (NORM_1, ATTENTION, NORM_2, MLP))
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
class PreNormMultihead(PreNorm):
    """Split a block with torch's MultiheadAttention, which adds a float padding mask to the logits of each key."""

    rounding = 1e-5  # asked for attention maps, it computes them, in another order

    @staticmethod
    def attend(block: Any, y: Tensor, tokens: LayerTokens) -> Any:
        """Return attention, to whose logits the weights of merged keys are added."""
        padding = None if tokens.key_bias is None else tokens.key_bias[:, 0, 0]
        return part_of(block, ATTENTION)(y, y, y, key_padding_mask=padding, need_weights=False)

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether attention is torch's: see `Structure.fits`."""
        return PreNorm.fits(block) and isinstance(part_of(block, ATTENTION), nn.MultiheadAttention)


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
        """Return False: see `Adapter.takes_mask`."""
        return False

    @staticmethod
    def mask_remedy(block: Any) -> str:
        """Return how attention could be told: see `Adapter.mask_remedy`."""
        return (
            ", or let it compute softmax(logits) or scaled_dot_product_attention in Python, or write an Adapter for "
            "it: see algm_patch.register"
        )


def scaled(y: Tensor, scale: Any, drop: Any) -> Tensor:
    """Return what is added to the residual: with layer scale, a module or numbers, and stochastic depth, if any."""
    if scale is not None:
        y = scale(y) if isinstance(scale, nn.Module) else scale * y
    return y if drop is None else drop(y)
