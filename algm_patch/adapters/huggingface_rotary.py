"""Split the blocks of transformers whose rotary angles are given without a place for the heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .huggingface import Layer, register_layers
from .huggingface_attention import attend, attention_of, gives_maps
from .huggingface_parts import arguments_by_name, norm_before, residual_branch


@register_layers("step3p7.Step3p7VisionEncoderLayer")
class Step3p7Layer(Layer):
    """Split a block whose attention turns queries and keys [B, L, heads, D] by angles [L, D] or [B, L, D]."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given = arguments_by_name(block, args, kwargs)
        if given.get("position_embeddings") is not None:
            cosine, sine = given["position_embeddings"]
            given["position_embeddings"] = average_turns(tokens, cosine, sine)
        return residual_branch(block, 1, attend(block, norm_before(block, 1)(x), tokens, given)) + x


@register_layers("mlcd.MLCDEncoderLayer")
class MLCDLayer(Layer):
    """Split a block that is given angles [P+N, D] of all its tokens, the same for all images of a batch."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        given, y = arguments_by_name(block, args, kwargs), norm_before(block, 1)(x)
        if tokens.token_map is None:
            return attend(block, y, tokens, given) + x
        prefix, (cosine, sine) = tokens.num_prefix_tokens, given["position_embeddings"]
        own = [turn[:prefix].expand(len(x), -1, -1) for turn in (cosine, sine)]
        patches = average_turns(tokens, cosine[prefix:], sine[prefix:])
        turns = [torch.cat(parts, 1) for parts in zip(own, patches, strict=True)]
        if len(x) == 1:
            return attend(block, y, tokens, {**given, "position_embeddings": [turn[0] for turn in turns]}) + x
        if gives_maps(attention_of(block), given):
            raise ValueError(
                "output_attentions=True: merged images have angles of their own, of which MLCD's attention takes those "
                "of one image, and gives no map of a batch. Give one image at a time, or call remove_algm first"
            )
        each = [
            attend(
                block, y[i : i + 1], tokens.of_image(i), {**given, "position_embeddings": [turn[i] for turn in turns]}
            )
            for i in range(len(x))
        ]
        return torch.cat(each) + x

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        return False  # the angles of all images but the first would begin with those of its prefix


def average_turns(tokens: LayerTokens, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """Return the rotary cosines and sines [N, D] of all patches for those that are left: [B, M, D] each."""
    unturned = torch.stack([torch.ones_like(cosine[0]), torch.zeros_like(sine[0])])
    return tokens.average_patches(torch.stack([cosine, sine]), neutral=unturned).unbind(-3)
