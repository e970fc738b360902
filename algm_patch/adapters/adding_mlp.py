"""Split blocks whose MLP takes the residual and adds it, as those of mmcv do."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from .block_parts import part_of
from .pre_norm import MLP, NORM_1, NORM_2, PreNormBySoftmax
from .registry import structure


@structure
class AddingMlp(PreNormBySoftmax):
    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return part_of(block, MLP)(part_of(block, NORM_2)(x), identity=x)

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the MLP takes the residual: see `Structure.fits`."""
        return PreNormBySoftmax.fits(block) and adds_identity(part_of(block, MLP))


@structure
class OneNorm(AddingMlp):
    """Split a block that norms by its first norm before the MLP too, as mmpretrain's DeiT3 does."""

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        return part_of(block, MLP)(part_of(block, NORM_1)(x), identity=x)


def adds_identity(mlp: Any) -> bool:
    """Return whether an MLP takes the residual, and adds its output to it."""
    return "identity" in inspect.signature(getattr(mlp, "forward", mlp)).parameters and getattr(
        mlp, "add_identity", True
    )
