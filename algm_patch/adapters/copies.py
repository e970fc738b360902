"""Split copies of known blocks under other module paths, where they are more than blocks that norm first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens
from .attention_parts import compared_projection, has_parts
from .block_parts import check_nothing_given, takes_one
from .dinov2 import DinoBlock
from .refused import BATCH_NOT_FIRST
from .registry import reads_blocks, structure
from .structure import Structure


@structure
class DinoCopy(Structure):
    """Split a copy of DINOv2's block, which leaves images out of a branch in training."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        check_nothing_given(block, args, kwargs)
        return DinoBlock.attention_half(block, x, tokens)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return DinoBlock.mlp_half(block, x)

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block has all parts of DINOv2's, and usual attention: see `Structure.fits`."""
        names = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2", "drop_path1")
        parts = [getattr(block, name, None) for name in names]
        if not all(isinstance(part, nn.Module) for part in parts) or not hasattr(block, "sample_drop_ratio"):
            return False
        return hasattr(block.attn, "num_heads") and has_parts(block.attn) and takes_one(block)

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        """Return whether attention has no hooks: computed from its parts, it takes packed images."""
        return not block.attn._forward_hooks

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        """Return where attention leaves queries, keys or values: see `Adapter.features`."""
        return compared_projection(block, ("attn",), compare)


@structure
class TorchLayer(Structure):
    """Split torch's own TransformerEncoderLayer and copies of it, before or behind whose branches the norms stand."""

    rounding = 1e-5  # in eval mode, the original is one fused kernel

    @staticmethod
    def attention_half(
        block: Any,
        x: Tensor,
        tokens: LayerTokens,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Tensor:
        check_nothing_given(
            block, (), {"src_mask": src_mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        )
        y = block.norm1(x) if block.norm_first else x
        padding = None if tokens.key_bias is None else tokens.key_bias[:, 0, 0]
        y = block.dropout1(block.self_attn(y, y, y, key_padding_mask=padding, need_weights=False)[0])
        return x + y if block.norm_first else block.norm1(x + y)

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = block.norm2(x) if block.norm_first else x
        y = block.dropout2(block.linear2(block.dropout(block.activation(block.linear1(y)))))
        return x + y if block.norm_first else block.norm2(x + y)

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block has the parts of torch's: see `Structure.fits`."""
        names = ("norm1", "dropout1", "linear1", "dropout", "linear2", "dropout2", "norm2", "activation", "norm_first")
        attention = getattr(block, "self_attn", None)
        if not isinstance(attention, nn.MultiheadAttention) or not all(hasattr(block, name) for name in names):
            return False
        return takes_one(block)

    @staticmethod
    def refusal(block: Any) -> str | None:
        """Return why the block cannot be patched: see `Adapter.refusal`."""
        return None if block.self_attn.batch_first else BATCH_NOT_FIRST


@reads_blocks("torch.nn.modules.transformer.TransformerEncoder.forward")
def last_layer(encoder: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the last layer, the only one that ``forward`` reads."""
    return [len(encoder.layers) - 1]
