"""transformers' ViTs patched for training: dropout, gradient checkpointing, saved weights, LoRA."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModel

from algm_patch import apply_algm
from algm_patch.patching.find_vit import find_vit
from tests.support.contract import SETTINGS, UNMERGED, tokens_of
from tests.support.models_huggingface import FAMILIES, build, inputs, photo
from tests.support.training import assert_same, gradients

CHANCE: dict[str, Any] = {
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.2,
    "attention_dropout": 0.2,
    "drop_path_rate": 0.4,
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_halves_are_the_block_in_training_too(family):
    """All dropouts and stochastic depths draw the same numbers in both."""
    kind = FAMILIES[family]
    config = kind.config()
    model = build(family, **{name: rate for name, rate in CHANCE.items() if hasattr(config, name)}).train()
    _, vit = find_vit(model)
    calls = []
    hooks = [
        block.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True) for block in vit.blocks
    ]
    model(**inputs(family, photo()))
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(vit.blocks)
    for (block, args, kwargs), adapter in zip(calls, vit.adapters, strict=True):
        x, *others = args or (kwargs.pop("hidden_states"),)
        torch.manual_seed(1)
        expected = block(x, *others, **kwargs)
        torch.manual_seed(1)
        half = adapter.attention_half(block, x, UNMERGED, *others, **kwargs)
        found = adapter.pack(block, adapter.mlp_half(block, half))
        assert torch.equal(tokens_of(found), tokens_of(expected))
        assert not torch.equal(tokens_of(block(x, *others, **kwargs)), tokens_of(expected))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family, reentrant):
    model, image = build(family), photo()
    of_a_class = any("class_pos_emb" in name for name, _ in model.named_parameters())
    if reentrant and (of_a_class or getattr(model, "shared_position_bias", None) is not None):
        pytest.skip("its layers share the graph of one part, which reentrant checkpointing goes back through once")
    apply_algm(model, **SETTINGS)

    def seeded_gradients():
        torch.manual_seed(0)
        return gradients(model, model(**inputs(family, image.requires_grad_())).last_hidden_state.square().sum())

    model.train()
    expected = seeded_gradients()
    assert len(expected) > 45
    assert model.algm.tokens_per_layer[-1] < 31
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(seeded_gradients(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in ("ViT", "DINOv3", "BEiT, shared bias") if f in FAMILIES])
def test_a_patched_model_is_saved_as_the_plain_one(family, tmp_path):
    model = build(family)
    expected = model(photo()).last_hidden_state
    apply_algm(model, **SETTINGS)
    merged = model(photo()).last_hidden_state
    assert torch.equal(copy.deepcopy(model)(photo()).last_hidden_state, merged)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(photo()).last_hidden_state, expected)
    assert torch.equal(apply_algm(loaded, **SETTINGS)(photo()).last_hidden_state, merged)


def test_with_peft():
    peft = pytest.importorskip("peft")
    model = build("DINOv2")
    expected = apply_algm(copy.deepcopy(model), **SETTINGS)(photo()).last_hidden_state
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj", "query", "value"]))
    apply_algm(wrapped, **SETTINGS)
    found = wrapped(pixel_values=photo()).last_hidden_state
    torch.testing.assert_close(found, expected)  # LoRA begins as nothing
    found.square().sum().backward()
    assert all(p.grad is not None for name, p in wrapped.named_parameters() if "lora_B" in name)
    assert wrapped.algm.tokens_per_layer[-1] < 31
