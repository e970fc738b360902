"""Split copies and kin of transformers' blocks, of classes that are not listed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .block_arguments import given_arguments
from .block_examples import arguments_that_run
from .huggingface import Layer
from .huggingface_attention import attention_of, inner_attention
from .huggingface_parts import parameter_names, returns_tuple, why_unknown
from .registry import structure
from .structure import Call, Structure
from .unpatched import unpatched

# Arguments that tell of the size of the image, for biases that the block makes itself.
BIASED = {"relative_position_bias", "interpolate_pos_encoding", "resolution"}


@structure
class LikeLayer(Layer, Structure):
    """Split a block by the names that transformers gives its parts and arguments, and by what these prove to do."""

    prefix = 1

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the parts and arguments have names that transformers gives them: see `Structure.fits`."""
        has_mlp = hasattr(block, "mlp") or (hasattr(block, "intermediate") and hasattr(block, "output"))
        biased = BIASED & {*parameter_names(unpatched(type(block)).forward)}
        return has_mlp and not biased and why_unknown(block) is None

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        return Layer.attention_half(block, x, tokens, **given_arguments(block, args, kwargs))

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        """Return whether attention fuses, without a mask; and without angles, which may be sines or cosines first."""
        return not given_arguments(block, args, kwargs) and Layer.packs(block, *args, **kwargs)

    @staticmethod
    def examples(block: Any, tokens: int, prefix: int) -> Iterable[Call]:
        """Yield what the forward takes of each kind: see `Structure.examples`."""
        yield arguments_that_run(block, inner_attention(attention_of(block)), tokens, prefix)


@structure
class LikeOldLayer(LikeLayer):
    """Split a block that returns None beside its tokens, in the place of a map of attention."""

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block may return a map, too: see `Structure.fits`."""
        return LikeLayer.fits(block) and returns_tuple(block)

    @staticmethod
    def pack(block: Any, x: Tensor) -> Any:
        return x, None
