"""Near copies of blocks that are told of places: none is taken for what it resembles."""

import pytest
import torch
from torch import nn

from algm_patch import apply_algm
from algm_patch.adapters.registry import proof_of
from tests.support.attention_of_positions import Rope2d
from tests.support.models import photo
from tests.support.models_of_positions import KINDS, PosBlock, build
from tests.support.mutations_of_positions import MUTATIONS, UNWEIGHED, KeysOnly, MlpReadsPositions, ValuesTurned


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_near_copy_is_refused_with_what_differs(mutation):
    proof = proof_of(MUTATIONS[mutation]())
    assert proof.adapter is None
    assert proof.reason


def test_a_near_copy_is_refused_by_name_and_nothing_is_patched():
    model = build("positions")
    model.blocks[3] = MlpReadsPositions(model.blocks[3].attn)
    with pytest.raises(ValueError, match=r"model\.blocks\[3\].*MlpReadsPositions.*halves differ"):
        apply_algm(model)
    assert not any(hasattr(part, "algm_part") for part in model.modules())


@pytest.mark.parametrize("attention", [ValuesTurned, KeysOnly])
def test_what_attention_does_with_positions_is_its_own(attention):
    assert proof_of(PosBlock(attention(rope=Rope2d()))).adapter is not None


@torch.no_grad()
@pytest.mark.parametrize("attention", UNWEIGHED)
def test_attention_that_takes_no_sizes_runs_without_them(attention):
    model, image = build("positions"), photo()
    for index in range(len(model.blocks)):
        model.blocks[index] = UNWEIGHED[attention]().eval()
    with pytest.raises(ValueError, match="proportional_attention=True"):
        apply_algm(model)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5, proportional_attention=False)
    model(image)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31


@torch.no_grad()
@pytest.mark.parametrize("kind", ["positions", "rotations of the patches", "bias of all blocks"])
def test_a_proof_leaves_no_trace(kind):
    model, image = build(kind), photo()
    expected, state = model(image), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert proof_of(model.blocks[0]).adapter is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(image), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_next_to_nothing_hide_nothing(kind):
    model = build(kind)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            nn.init.constant_(parameter, 1e-6)
    assert proof_of(model.blocks[0]).adapter is not None
