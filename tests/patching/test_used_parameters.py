"""Merging leaves no parameter without its gradient, in any family."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from algm_patch import apply_algm
from tests.support import models_huggingface
from tests.support.models import ALL, ENCODERS, GRID, build, photo, read_every_block
from tests.support.training import beginning_with
from tests.support.wrapping import SETTINGS, sharded

EVEN = (6, 4)  # Qwen3's own merger takes windows
SAME_BLOCKS = {"hybrid, ResNet", "hybrid, convolutional stem"}  # as "ViT", behind slow stems
NOTHING = {"tau": 1.0, "gbm_tau": 1.0}
EVERYTHING = {"tau": -1.0, "gbm_tau": -1.0}
HUGGING_FACE = [
    "ViT",
    "DeiT",
    "DINOv2, registers",
    "DINOv3",
    "Sapiens 2",
    "BEiT, bias per layer",
    "BEiT, both, eager",
    "Data2Vec, shared bias",
    "CLIP",
    "SigLIP 2",
    "ViT-MAE",
    "Pixio",
]


def timm_loss(family):
    image = photo(family, grid=EVEN if family in ENCODERS else GRID)
    return lambda model: model(image).square().sum()


def hugging_face_loss(family):
    tokens = models_huggingface.tokens(family)
    return lambda model: tokens(model, models_huggingface.photo()).square().sum()


CASES = {
    **{
        family: (lambda family=family: build(family, EVEN if family in ENCODERS else GRID), timm_loss(family))
        for family in sorted(ALL.keys() - SAME_BLOCKS)
    },
    **{
        f"transformers, {family}": (
            lambda family=family: models_huggingface.build(family),
            hugging_face_loss(family),
        )
        for family in HUGGING_FACE
    },
}


def with_gradient(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("case", CASES)
def test_no_parameter_is_unused_because_of_merging(case):
    """DDP raises in the next forward pass if the last left a parameter without its gradient."""
    make, loss = CASES[case]
    model = make().train()
    loss(model).backward()
    used = with_gradient(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in used)
    whole, lengths = DistributedDataParallel(apply_algm(model, **SETTINGS)), []
    for every_block in (False, True):
        if every_block:
            read_every_block(model)
        for thresholds in (SETTINGS, NOTHING, EVERYTHING):
            model.algm.tau = thresholds["tau"]
            model.algm.gbm_tau = thresholds.get("gbm_tau", "adaptive")
            model.zero_grad()
            loss(whole).backward()
            assert with_gradient(model) == used, (every_block, thresholds)
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)
            lengths.append(model.algm.tokens_per_layer[-1])
    assert lengths[:3] == lengths[3:]
    assert lengths[2] <= lengths[0] < lengths[1]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "case", ["EVA-02", "NaFlex", "BEiT, shared bias", "Qwen3", "transformers, DINOv3", "transformers, CLIP"]
)
@pytest.mark.parametrize("patched", ["before", "after"])
def test_shards_of_other_families(case, patched):
    make, loss = CASES[case]
    plain, model = apply_algm(make().train(), **SETTINGS), make().train()
    model = sharded(apply_algm(model, **SETTINGS)) if patched == "before" else apply_algm(sharded(model), **SETTINGS)
    for each in (plain, model):
        torch.manual_seed(0)
        loss(each).backward()
    assert str(model.algm).partition("\n")[2] == str(plain.algm).partition("\n")[2]
    assert model.algm.token_map.sizes.amax() > 1
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        found = None if parameter.grad is None else parameter.grad.full_tensor()
        torch.testing.assert_close(found, expected.grad, msg=beginning_with(name))
