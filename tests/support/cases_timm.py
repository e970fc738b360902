"""Models of timm."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from tests.support import models
from tests.support.contract import Case


def mask(length: int) -> dict[str, Tensor]:
    """Return a mask of pairs of tokens, as an argument of timm's forwards."""
    return {"attn_mask": torch.randn(length, length, generator=torch.Generator().manual_seed(1))}


def tokens(model: Any, image: Tensor, **inputs: Tensor) -> Tensor:
    """Return a model's final tokens [B, P+N, D]."""
    found = model.forward_features(image, **inputs)
    return found if found.dim() == 3 else found.flatten(1, 2)


def takes_mask(family: str) -> bool:
    """Return True if a family's models can be given a mask."""
    return "attn_mask" in inspect.signature(models.build(family).forward_features).parameters


def case(family: str) -> Case:
    """Return the case of one of timm's families."""
    return Case(
        build=lambda: models.build(family),
        image=lambda: models.photo(family),
        tokens=tokens,
        position_inputs=lambda length: mask(length) if takes_mask(family) else {},
    )


CASES = {f"timm {family}": case(family) for family in models.ALL}
