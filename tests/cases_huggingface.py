"""Models of transformers."""

from __future__ import annotations

import importlib.util

import torch
from contract import Case
from torch import Tensor

CASES: dict[str, Case] = {}


def mask(length: int) -> dict[str, Tensor]:
    return {"attention_mask": torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(1))}


if importlib.util.find_spec("transformers"):
    import models_huggingface as huggingface

    CASES = {
        f"transformers {family}": Case(
            lambda family=family: huggingface.build(family),
            huggingface.photo,
            huggingface.tokens(family),
            mask if kind.takes_mask else lambda length: {},
        )
        for family, kind in huggingface.FAMILIES.items()
    }
