"""Attention in transformers' ViTs that takes no bias: refused, or run without proportional attention."""

import pytest
import torch
import transformers
from torch import nn

from algm_patch import apply_algm
from algm_patch.adapters.huggingface_attention import attention_of, implementation, inner_attention
from tests.support.contract import SETTINGS
from tests.support.models import blocks_of
from tests.support.models_huggingface import FAMILIES, build, inputs, photo


def use(model, attention):
    """Choose a model's attention as set_attn_implementation does, also one that this machine does not have."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention


def follows_config(family):
    """Return True if a family computes attention by what its config names at the time."""
    model = build(family)
    use(model, "another")
    return implementation(attention_of(blocks_of(model)[0])) == "another"


FOLLOWING = [family for family in FAMILIES if follows_config(family)]


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "one of my own"])
@pytest.mark.parametrize("family", FOLLOWING)
def test_attention_that_takes_no_bias_is_refused(family, attention):
    model = build(family)
    use(model, attention)
    with pytest.raises(
        ValueError, match=rf"block 1 of .* Pass proportional_attention=False, or load .*'sdpa'.*'{attention}'"
    ):
        apply_algm(model)
    use(model, "sdpa")
    apply_algm(model, **SETTINGS)
    blocks_of(model)[1].register_forward_pre_hook(lambda *_: use(model, attention))
    with pytest.raises(
        ValueError, match=rf"'{attention}'.*set_attn_implementation\('sdpa'\).*proportional_attention = False"
    ):
        model(**inputs(family, photo()))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_an_unknown_class_is_refused(family):
    """A subclass may compute its logits anywhere."""
    model = build(family)
    for block in blocks_of(model):
        attention = inner_attention(attention_of(block))
        own = type(attention)
        attention.__class__ = type(
            "MyAttention", (own,), {"forward": lambda self, *a, own=own, **k: own.forward(self, *a, **k)}
        )
    with pytest.raises(ValueError, match=r"Pass proportional_attention=False, or load .*'MyAttention' adds no bias"):
        apply_algm(model)


def bare_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Compute attention as flash kernels do: without a mask."""
    assert attention_mask is None
    return nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in ("ViT", "DINOv2", "DINOv3", "CLIP", "DPT") if f in FOLLOWING])
def test_attention_that_takes_no_bias_runs_without_proportional_attention(family):
    transformers.AttentionInterface.register("bare", bare_attention)
    model, image = build(family), photo()
    apply_algm(model, proportional_attention=False, **SETTINGS)
    expected = model(**inputs(family, image)).last_hidden_state
    use(model, "bare")
    torch.testing.assert_close(model(**inputs(family, image)).last_hidden_state, expected)
    assert model.algm.tokens_per_layer[-1] < 31
