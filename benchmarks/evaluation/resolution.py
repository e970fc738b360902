"""Run a model on smaller images, which is the alternative that everybody has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from algm_patch.patching.find_vit import find_vit


@contextmanager
def lower_resolution(model: nn.Module, scale: float) -> Iterator[None]:
    """Merge nothing, and give the model images with shorter sides, until the end of the context.

    The sides are rounded to whole patches. What the model returns is enlarged to the size that it would have returned,
    bilinearly. GFLOPs are those of the smaller images.

    Args:
        model: normalised images [B, 3, H, W] to maps [B, C, h, w], by a ViT that takes images of several sizes.
        scale: what the sides are multiplied with, above 0 and at most 1.

    Raises:
        ValueError: if the scale or the model does not fit; or, in a forward pass, if the model returns no maps.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"a lower resolution scales the sides of images by more than 0 and at most 1; got {scale}")
    trunk, vit = find_vit(model)
    if getattr(getattr(trunk, "patch_embed", None), "strict_img_size", False):
        raise ValueError(
            f"{type(trunk).__name__} takes images of one size only, so there is no lower resolution to compare with. "
            "Leave it out, or create the model with dynamic_img_size=True"
        )
    patch: Any = vit.projection.kernel_size
    whole: list[tuple[int, int]] = []

    def shrink(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        height, width = images.shape[2:]
        whole[:] = [(height, width)]
        return (resized(images, smaller(height, scale, patch[0]), smaller(width, scale, patch[1])), *rest)

    def enlarge(_: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(f"{type(model).__name__} returned {found} where a lower resolution enlarges [B, C, h, w]")
        (height, width), (seen_height, seen_width) = whole[0], inputs[0].shape[2:]
        return resized(maps, round(maps.shape[2] * height / seen_height), round(maps.shape[3] * width / seen_width))

    hooks = (model.register_forward_pre_hook(shrink), model.register_forward_hook(enlarge))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def smaller(side: int, scale: float, patch: int) -> int:
    """Return a side of an image in pixels, scaled and rounded to whole patches."""
    return max(1, round(scale * side / patch)) * patch


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Return images or maps [B, C, height, width], antialiased if they shrink; the same ones if they have this size."""
    if maps.shape[2:] == (height, width):
        return maps
    shrinks = height < maps.shape[2]  # in float32: no other precision is antialiased on a CPU
    return interpolate(maps.float(), (height, width), mode="bilinear", antialias=shrinks).to(maps.dtype)
