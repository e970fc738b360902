"""Models of timm."""

import models
import torch
from contract import Case
from torch import Tensor


def mask(length: int) -> dict[str, Tensor]:
    return {"attn_mask": torch.randn(length, length, generator=torch.Generator().manual_seed(1))}


def takes_mask(family: str) -> bool:
    return not family.startswith(("BEiT", "relative positions"))


CASES = {
    f"timm {family}": Case(
        lambda family=family: models.build(family),
        lambda family=family: models.photo(family),
        lambda model, image, **inputs: model.forward_features(image, **inputs),
        mask if takes_mask(family) else lambda length: {},
    )
    for family in (*models.FAMILIES, *models.OTHERS)
}
