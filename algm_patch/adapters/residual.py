"""Do what blocks of several libraries do around what they add to the residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def layer_scale(gamma: Tensor | None, x: Tensor) -> Tensor:
    """Return ``x`` times the layer scale [D]; as it is if there is none."""
    return x if gamma is None else gamma * x


def checkpointed(block: Any, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``half(x)``, computed again in the backward pass if the block's ``with_cp`` asks for it.

    mmsegmentation's blocks checkpoint inside their forward, which ALGM replaces by the halves.
    """
    with_cp = getattr(block, "with_cp", False)  # ViT-Adapter's first blocks have no such setting
    return checkpoint(half, x, use_reentrant=False) if with_cp and x.requires_grad else half(x)
