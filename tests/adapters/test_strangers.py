"""Copies of known blocks under a path that is not known merge as the known ones do, token for token."""

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.registry import proof_of
from tests.support.cases import CASES
from tests.support.contract import SETTINGS
from tests.support.models import blocks_of
from tests.support.strangers import as_strangers

COPIED = [
    "timm ViT",
    "timm EVA",
    "timm EVA-02",
    "timm DINOv3",
    "timm RoPE, mixed",
    "timm RoPE, register",
    "timm Perception Encoder",
    "timm BEiT",
    "timm BEiT, shared bias",
    "timm relative positions, shared",
    "timm DeepSeek",
    "transformers ViT",
    "transformers DPT, eager",
    "transformers DINOv3",
    "transformers CLIP",
    "transformers SigLIP, eager",
    "transformers FLAVA",
    "transformers InternVL",
    "mmseg ViT",
    "mmseg BEiT",
    "EVA-01 BEiTBaseline, both biases",
    "EVA-01 BEiTAdapter",
    "EVA-01 ViTAdapter",
    "hub DINOv2, 4 registers",
]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in COPIED if name in CASES])
def test_a_copy_merges_as_the_known_block(name):
    case = CASES[name]
    model, image = case.build(), case.image()
    apply_algm(model, **SETTINGS)
    expected, counts = case.tokens(model, image), model.algm.tokens_per_layer
    as_strangers(remove_algm(model))
    apply_algm(model, **SETTINGS)
    assert type(blocks_of(model)[0]).__module__ == "vendored.blocks"
    torch.testing.assert_close(case.tokens(model, image), expected, atol=1e-5, rtol=1e-5)
    assert model.algm.tokens_per_layer == counts


@pytest.mark.parametrize("name", ["timm EVA-02, post-norm", "timm ResPostBlock", "timm relative positions"])
def test_a_copy_of_another_shape_is_refused(name):
    model = as_strangers(CASES[name].build())
    proof = proof_of(model.blocks[0])
    assert proof.adapter is None
    with pytest.raises(ValueError, match=r"model\.blocks.* cannot be patched: vendored\.blocks\."):
        apply_algm(model)
