"""Blocks of one model in different dtypes, as mixed-precision wrappers leave them."""

import pytest
import torch

from algm_patch import apply_algm
from tests.support.models import build, photo


def mixed(before, after):
    """Return a ViT whose last two blocks are of another dtype, and are given tokens in it."""
    model = build("ViT").to(before)
    model.blocks[3:].to(after)
    model.norm.to(after)
    model.blocks[2].register_forward_hook(lambda _, inputs, output: output.to(after))
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("before", "after"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float64)],
    ids=str,
)
def test_keys_weigh_in_the_dtype_of_their_tokens(before, after, monkeypatch):
    attention, seen = torch.nn.functional.scaled_dot_product_attention, []

    def noted(query, key, value, attn_mask=None, **options):
        seen.append((query.dtype, None if attn_mask is None else attn_mask.dtype))
        return attention(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr("timm.layers.attention.F.scaled_dot_product_attention", noted)
    model = apply_algm(mixed(before, after), gbm_layers=[2], tau=0.5)
    assert model.forward_features(photo(batch=1).to(before)).dtype == after
    assert seen == [(before, None), (before, before), (before, before), (after, after), (after, after)]
