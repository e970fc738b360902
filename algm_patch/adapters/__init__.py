"""Say what is known of other libraries: where their blocks split into halves, and which methods run the blocks.

A block is known by the function that its forward is. Whoever knows a block of their own teaches it to the library with
an `Adapter`, which mirrors that forward as two halves::

    @register("mypackage.models.Block.forward")
    class BlockHalves(Adapter):
        @staticmethod
        def attention_half(block, x, tokens):
            return x + block.attn(block.norm1(x), mask=tokens.attention_mask(None))

        @staticmethod
        def mlp_half(block, x):
            return x + block.mlp(block.norm2(x))

The public names:

- `Adapter`: the interface; every method but the two halves has a default.
- `register`: registers an adapter under the path of the forward that it mirrors.
- `reads_blocks`: registers which blocks' outputs a method reads that runs the blocks; only those give back the grid.
- `LayerTokens`: what ``attention_half`` is told of its tokens. Inputs of attention that depend on the order of
  the tokens go through it: masks through ``attention_mask``, biases of pairs of tokens through ``pair`` or ``plus``,
  rotary angles through ``average_patches``.

Each family of a library has a file, and what families share has files of its own (attention, beit_attention, features,
key_bias, residual, cost). Blocks that are known and cannot be patched are listed in ``refused``, by the reason. To add
a family, add its file, and its name to the import below.
"""

from ..core.layer_tokens import LayerTokens
from . import (  # noqa: F401, which register
    adding_mlp,
    copies,
    dinov2,
    eva01,
    huggingface,
    huggingface_beit,
    huggingface_grids,
    huggingface_like,
    huggingface_mae,
    huggingface_rotary,
    huggingface_runners,
    huggingface_siglip2,
    huggingface_vision,
    mmseg,
    open_clip,
    placed,
    pre_norm,
    segmenter,
    timm_beit,
    timm_encoders,
    timm_eva,
    timm_gemma4,
    timm_naflex,
    timm_relpos,
    timm_vit,
)
from .base import Adapter
from .registry import reads_blocks, register

__all__ = ["Adapter", "LayerTokens", "reads_blocks", "register"]
