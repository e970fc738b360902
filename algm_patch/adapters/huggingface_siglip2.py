"""Split the blocks of transformers' SigLIP 2, whose images bring grids of their own."""

from __future__ import annotations

from typing import Any

from .huggingface import Layer, register_layers


@register_layers("siglip2.Siglip2EncoderLayer")
class Siglip2EncoderLayer(Layer):
    projection = "embeddings"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "patch_embedding")

    @staticmethod
    def grid(
        projection: Any, output: Any, pixel_values: Any, spatial_shapes: Any, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        """Return (H, W) of the patches from the grids that Siglip2VisionEmbeddings is given.

        Raises:
            ValueError: if they differ between images, or there is padding.
        """
        (height, width), *others = spatial_shapes.unique(dim=0).tolist()
        if others or height * width != output.shape[1]:
            raise ValueError(
                f"spatial_shapes={spatial_shapes.tolist()} for {output.shape[1]} patches an image: ALGM needs one grid "
                "in the batch and no padding. Run images of one size together, with max_num_patches=height * width"
            )
        return height, width

    @staticmethod
    def position_cost(trunk: Any, grid: tuple[int, int]) -> int:
        """Return the operations that resize the table of positions, which newer releases do by a product."""
        resize, table = trunk.embeddings.resize_positional_embeddings, trunk.embeddings.position_embedding.weight
        return 0 if "interpolate" in resize.__code__.co_names else 2 * grid[0] * grid[1] * table.numel()
