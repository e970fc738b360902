"""The settings of the supplement's ablations, and a run of a case with the same random numbers every time."""

from typing import Any

import pytest
import torch

from tests.support.cases import CASES

SETTINGS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [2, 4], "tau": 0.3, "gbm_tau": 0.0, "size_aware": False}
COMBINATIONS = [
    {"compare": "key"},
    {"compare": "value", "proportional_attention": False},
    {"reduce": "pick"},
    {"place": "after_mlp"},
    {"compare": "query", "reduce": "pick", "place": "after_mlp"},
]
FAMILIES = [
    "timm ViT",
    "timm DINOv3",
    "timm relative positions",
    "transformers DINOv2",
    "transformers DINOv3",
    "transformers Data2Vec, bias per layer",
    "Segmenter mask transformer",
    "hub DINOv2",
]
METRICS = ["query", "key", "value"]


def case_of(family):
    if family not in CASES:
        pytest.skip(f"the installed libraries have no {family}")
    return CASES[family]


def seeded_tokens(case, model, image):
    """Return the final tokens, with the same random numbers every time."""
    torch.manual_seed(7)
    with torch.no_grad():
        return case.tokens(model, image)
