"""Read the grid of timm's NaFlexViT, whose images bring grids of their own. Its blocks are those of ViT and EVA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .timm_trunks import register_trunk

NAFLEX = "timm.models.naflexvit"
EMBEDS = f"{NAFLEX}.NaFlexEmbeds.forward"


def naflex_grid(
    embeds: Any, x: Tensor, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
) -> tuple[int, int]:
    """Return (H, W) of the patches from the arguments of NaFlexEmbeds' forward.

    Args:
        x: images [B, C, h, w]; or patches [B, N, ...], with
        patch_coord: [B, N, 2], the row and column of each, and
        patch_valid: [B, N], False for padding.

    Raises:
        ValueError: if the patches are not one grid, the same in all images, whole and in raster order.
    """
    if patch_coord is None:
        height, width = embeds.dynamic_feat_size(x.shape[-2:])
        return height, width
    height, width = (int(last) + 1 for last in patch_coord.flatten(0, 1).amax(0))
    raster = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(patch_coord)
    whole = patch_valid is None or bool(patch_valid.all())
    if not whole or patch_coord.shape[1:] != raster.shape or not bool((patch_coord == raster).all()):
        raise ValueError(
            "the patches of this batch are not one whole grid: images of several grids, or padding. ALGM merges in "
            "windows of a grid. Give images of one size a batch, without padding"
        )
    return height, width


register_trunk(f"{NAFLEX}.NaFlexVit")
