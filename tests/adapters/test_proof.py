"""Proofs cost little, hold for what they were made of, and leave no trace."""

import random
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.functional import gelu, silu
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from algm_patch import apply_algm
from algm_patch.adapters import proof, registry
from tests.support import models, plain_vits
from tests.support.contract import trace
from tests.support.plain_parts import DIM
from tests.support.plain_vits import MaeBlock, TimmBlock, TorchBlock


@pytest.fixture
def proved(monkeypatch):
    """Forget what was proved, and return the blocks that are proved from here on."""
    blocks: list[Any] = []

    def prove(adapter, block):
        blocks.append(block)
        return proof.prove(adapter, block)

    monkeypatch.setattr(registry, "PROOFS", {})
    monkeypatch.setattr(registry, "prove", prove)
    return blocks


# -- cost


def test_blocks_of_one_class_are_proved_once(proved):
    model = plain_vits.build(TimmBlock, depth=6)
    for layer, block in enumerate(model.blocks):
        block.drop_path1.drop_prob = 0.2 + layer / 100  # as deeper blocks have
    apply_algm(model, gbm_layers=[2])
    apply_algm(model, gbm_layers=[3])
    apply_algm(plain_vits.build(TimmBlock), gbm_layers=[2])
    assert proved == [model.blocks[0], *proved[1:]]
    assert len(proved) == 2  # the other model's have no stochastic depth


def test_known_models_run_no_proof(proved):
    apply_algm(models.build("ViT"))
    assert proved == []


class Wide(Block):
    """Timm's block, by another path."""

    def forward(self, x):
        return super().forward(x)


def test_a_proof_is_quick():
    """It costs no more than a few hundred tokens do, of the width of ViT-L."""
    block = Wide(1024, 16)
    with FlopCounterMode(display=False) as counter:
        assert registry.try_structures(block).reason is None
    assert counter.get_total_flops() < 150 * 2 * sum(weight.numel() for weight in block.parameters())


# -- what it is remembered for

OTHERS: dict[str, Any] = {
    "post-norm": {"norm_first": False},
    "another activation": {"activation": silu},
    "a function that is equal in name": {"activation": lambda x: gelu(x)},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_configuration_is_proved_anew(proved, other):
    registry.adapter_of(TorchBlock())
    registry.adapter_of(TorchBlock(**OTHERS[other]))
    assert len(proved) == 2


# -- no trace


def normed(block):
    """Give a block batch norm, which keeps statistics of what goes through it."""
    block.bn = nn.BatchNorm1d(DIM)
    block.mlp = nn.Sequential(nn.Flatten(0, 1), block.bn, nn.Unflatten(0, (2, -1)), block.mlp)


def parametrized(block):
    parametrizations.weight_norm(block.attn.qkv)


def hooked(block):
    for part in block.modules():
        for register in (part.register_forward_hook, part.register_forward_pre_hook, part.register_full_backward_hook):
            register(lambda *args: pytest.fail("a hook of the user's ran"))


def in_half_precision(block):
    block.bfloat16()


@pytest.mark.parametrize("change", [normed, parametrized, hooked, in_half_precision, lambda block: block.train()])
def test_a_proof_leaves_no_trace(change):
    block = TimmBlock(drop=0.3)
    change(block)
    modes = [part.training for part in block.modules()]
    before = {name: value.clone() for name, value in block.state_dict().items()}
    parts, tensors = trace(block), [id(tensor) for tensor in (*block.parameters(), *block.buffers())]
    states = torch.get_rng_state(), random.getstate()
    registry.try_structures(block)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert trace(block) == parts
    assert [part.training for part in block.modules()] == modes
    assert [id(tensor) for tensor in (*block.parameters(), *block.buffers())] == tensors
    assert all(parameter.grad is None for parameter in block.parameters())
    after = block.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("change", [parametrized, hooked, in_half_precision])
def test_what_is_around_a_block_does_not_keep_it_from_being_proved(change):
    block = TimmBlock()
    change(block)
    assert registry.try_structures(block).reason is None


def test_batch_norm_is_refused_for_what_it_keeps_in_training():
    block = MaeBlock()
    normed(block)
    reason = str(registry.try_structures(block).reason)
    assert "in training, its forward changes mlp.1.running_mean by its tokens" in reason


def test_a_part_with_a_forward_of_its_own_instance_is_refused():
    model = plain_vits.build(MaeBlock)
    model.blocks[1].mlp.forward = lambda x: x.roll(1, 1)
    with pytest.raises(ValueError, match=r"model\.blocks\[1\] .* its mlp has a forward set on the instance"):
        apply_algm(model, gbm_layers=[2])


def test_a_wrapper_does_not_pass_for_the_block_in_it():
    assert "hands on the parts of another module" in str(registry.proof_of(checkpoint_wrapper(MaeBlock())).reason)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_the_context_of_the_caller_does_not_matter(context):
    block = TimmBlock()
    with context(), torch.autocast("cpu", torch.bfloat16):
        assert registry.try_structures(block).reason is None


def test_coarse_products_that_the_caller_allows_stay_allowed():
    torch.set_float32_matmul_precision("medium")
    try:
        assert registry.try_structures(TimmBlock()).reason is None
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# -- models without numbers, and blocks that are no ViT's


def test_blocks_on_the_meta_device_are_proved():
    with torch.device("meta"):
        model = plain_vits.Vit(*(TimmBlock() for _ in range(3)))
    apply_algm(model, gbm_layers=[2])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_buffers_without_numbers_are_named():
    block = MaeBlock()
    block.attn.register_buffer("table", torch.zeros(4, device="meta"))
    assert "its buffer attn.table is on the meta device and has no values" in str(registry.try_structures(block).reason)


class Words(nn.Module):
    """A text tower of the same blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, DIM)
        self.layers = nn.ModuleList(MaeBlock() for _ in range(3))


def test_a_text_tower_is_not_patched(proved):
    with pytest.raises(ValueError, match="no patch projection"):
        apply_algm(Words())
    assert proved == []


def test_a_text_tower_beside_a_vit_stays_as_it_is():
    text, image = Words(), plain_vits.build(MaeBlock)
    apply_algm(nn.ModuleDict({"text": text, "image": image}), gbm_layers=[2])
    assert [type(layer) for layer in text.layers] == [MaeBlock] * 3
    assert type(image.blocks[0]) is not MaeBlock
