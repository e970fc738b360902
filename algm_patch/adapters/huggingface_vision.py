"""Split the blocks of transformers that differ from most in one part: layer scales, experts, what they return."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .huggingface import Layer, register_layers
from .huggingface_attention import attend
from .huggingface_parts import arguments_by_name, norm_before
from .huggingface_runners import layers_read
from .libraries import transformers_path
from .registry import reads_blocks


@register_layers("aimv2.Aimv2EncoderLayer", "ovis2.Ovis2VisionEncoderLayer")
class Aimv2Layer(Layer):
    """Split a block that adds to its residual, not the residual to it: the sum is laid out in memory as its input."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        return x + attend(block, block.rms_norm1(x), tokens, arguments_by_name(block, args, kwargs))

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return x + block.ffn(block.rms_norm2(x))


@register_layers("internvl.InternVLVisionLayer", "qianfan_ocr.QianfanOCRVisionLayer")
class InternVLLayer(Layer):
    """Split a block whose dropout is of its MLP alone."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments_by_name(block, args, kwargs)
        y = block.lambda_1 * attend(block, norm_before(block, 1)(x), tokens, given)
        return (block.drop_path1(y) if hasattr(block, "drop_path1") else y) + x

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        y = block.lambda_2 * block.dropout(block.mlp(norm_before(block, 2)(x)))
        return (block.drop_path2(y) if hasattr(block, "drop_path2") else y) + x


@register_layers("vitpose_backbone.VitPoseBackboneLayer")
class VitPoseLayer(Layer):
    """Split a block that is told which data set each image is of, for experts in its MLP."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments_by_name(block, args, kwargs)
        given.pop("dataset_index", None)
        return attend(block, norm_before(block, 1)(x), tokens, given) + x

    @staticmethod
    def refusal(block: Any) -> str | None:
        if block.num_experts > 1:
            return (
                "its MLP has an expert for each data set, which dataset_index chooses for each image of a batch, and "
                "merged tokens go through the MLP without it"
            )
        return Layer.refusal(block)

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        return Layer.packs(block)


@register_layers("mgp_str.MgpstrLayer")
class MgpstrLayer(Layer):
    """Split a block that returns its attention map beside its tokens."""

    projection = "embeddings.proj"

    @staticmethod
    def pack(block: Any, x: Tensor) -> Any:
        return x, None


@reads_blocks(f"{transformers_path('mgp_str.MgpstrEncoder')}.forward")
def mgpstr_layers_read(encoder: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the layers whose output the encoder reads; raise ValueError if it is to return attention maps."""
    if arguments_by_name(encoder, args[1:], kwargs).get("output_attentions"):
        raise ValueError(
            "output_attentions=True: MgpstrLayer returns its attention map beside its tokens, where those of merged "
            "layers do not fit. Call remove_algm first"
        )
    return layers_read(encoder, *args, **kwargs)
