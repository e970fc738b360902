"""Split the blocks of transformers whose embedding is told the grid of each image, or cuts the patches itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .huggingface import Layer, register_layers


@register_layers(
    "idefics2.Idefics2EncoderLayer",
    "idefics3.Idefics3EncoderLayer",
    "smolvlm.SmolVLMEncoderLayer",
    "phi4_multimodal.Phi4MultimodalVisionEncoderLayer",
)
class PaddedLayer(Layer):
    """Split a block of a model that takes images of several sizes, padded, and a mask of their patches."""

    projection = "embeddings"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "patch_embedding")

    @staticmethod
    def grid(
        projection: Any, output: Any, pixel_values: Tensor, patch_attention_mask: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        """Return (H, W) of the patches from the mask that the embeddings are given.

        Raises:
            ValueError: if there is padding.
        """
        _, height, width = patch_attention_mask.shape
        if not patch_attention_mask.all() or height * width != output.shape[1]:
            raise ValueError(
                "patch_attention_mask leaves patches out: ALGM needs one grid in the batch and no padding. Run images "
                "of one size together"
            )
        return height, width


@register_layers("radio.RadioLayer")
class RadioLayer(Layer):
    """Split a block of RADIO, which cuts an image into patches and embeds them with a linear layer."""

    projection = "embeddings"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "patch_projection") and hasattr(module, "patch_size")

    @staticmethod
    def grid(
        projection: Any, output: Any, pixel_values: Tensor, image_grid_hw: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        """Return (H, W) of the patches from the images that RadioPatchEmbeddings is given.

        Raises:
            ValueError: if images of several sizes lie end to end in one sequence.
        """
        if image_grid_hw is not None:
            raise ValueError(
                f"image_grid_hw={image_grid_hw.tolist()}: the patches of all images lie end to end in one sequence, "
                "which is no batch of one grid. Run images of one size together, without image_grid_hw"
            )
        return pixel_values.shape[2] // projection.patch_size, pixel_values.shape[3] // projection.patch_size
