"""Split the blocks of transformers' ViT-MAE, whose embedding drops and shuffles patches."""

from __future__ import annotations

from typing import Any

import torch

from .huggingface import Layer, register_layers


@register_layers("vit_mae.ViTMAELayer")
class ViTMAELayer(Layer):
    projection = "embeddings"

    @staticmethod
    def is_projection(module: Any) -> bool:
        return hasattr(module, "patch_embeddings")

    @staticmethod
    def grid(projection: Any, output: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return (H, W) of the patches from the image that ViTMAEEmbeddings is given.

        Raises:
            ValueError: if patches are dropped or shuffled, which it does at random, even if it drops none.
        """
        image = args[0] if args else kwargs["pixel_values"]
        height, width = (n // p for n, p in zip(image.shape[2:], projection.patch_embeddings.patch_size, strict=True))
        _, dropped, order = output
        if dropped.any() or not torch.equal(order, torch.arange(height * width, device=order.device).expand_as(order)):
            raise ValueError(
                "ViT-MAE drops and shuffles patches at random, and ALGM needs the whole grid in order. Set "
                f"config.mask_ratio = 0 and pass noise=torch.arange({height * width}).expand({len(image)}, -1)"
            )
        return height, width
