"""Models of timm."""

import inspect
from typing import Any

import torch
from torch import Tensor

from tests.support import models
from tests.support.contract import Case


def mask(length: int) -> dict[str, Tensor]:
    return {"attn_mask": torch.randn(length, length, generator=torch.Generator().manual_seed(1))}


def tokens(model: Any, image: Tensor, **inputs: Tensor) -> Tensor:
    found = model.forward_features(image, **inputs)
    return found if found.dim() == 3 else found.flatten(1, 2)


def takes_mask(family: str) -> bool:
    return "attn_mask" in inspect.signature(models.build(family).forward_features).parameters


CASES = {
    f"timm {family}": Case(
        lambda family=family: models.build(family),
        lambda family=family: models.photo(family),
        tokens,
        lambda length, family=family: mask(length) if takes_mask(family) else {},
    )
    for family in models.ALL
}
