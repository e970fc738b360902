"""Attention in timm's ViTs, patched: its masks, the weight of merged tokens, and what is refused."""

from typing import Any

import pytest
import timm
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.contract import SETTINGS
from tests.support.models import FAMILIES, block_outputs, build, photo


@torch.no_grad()
def test_attention_masks_reach_merged_layers():
    """Keys that are masked for every query have no influence when tokens around them merge."""
    model, image = build("ViT"), photo(batch=1)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    length = 31
    visible = torch.ones(length, length, dtype=torch.bool)
    model.forward_features(image)
    alone = (model.algm.token_map.sizes[0] == 1).nonzero()[-1]
    hidden = (model.algm.token_map.labels[0] == alone).nonzero().item()
    visible[:, hidden] = False
    seen = []
    model.blocks[3].attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attn_mask"]), with_kwargs=True
    )
    model.forward_features(image, attn_mask=visible)
    (mask,) = seen
    label = model.algm.token_map.labels[0, hidden]
    assert mask.shape[-1] == model.algm.tokens_per_layer[-1]
    assert (mask[..., label] == -torch.inf).all()
    others = torch.arange(mask.shape[-1]) != label
    torch.testing.assert_close(mask[0, 0, 0, others], model.algm.token_map.sizes[0].log()[others], atol=1e-6, rtol=1e-6)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@torch.no_grad()
def test_unmerged_layers_keep_their_fast_path(family):
    """No mask reaches attention before anything is merged."""
    model, image = build(family), photo(family)
    apply_algm(model, clap_layer=3, gbm_layers=[], tau=0.5, batch="min")
    masks: dict[int, list[Any]] = {layer: [] for layer in range(5)}
    for layer, block in enumerate(model.blocks):
        for part in getattr(block, "attns", [block]):
            part.attn.register_forward_pre_hook(
                lambda _, args, kwargs, layer=layer: masks[layer].append(kwargs.get("attn_mask", args[1:] or None)),
                with_kwargs=True,
            )
    model.forward_features(image)
    for layer, seen in masks.items():
        assert seen
        assert all((mask is None) == (layer < 3) for mask in seen)


def test_causal_attention_is_refused():
    model = apply_algm(build("ViT"), tau=0.5)
    x = model._pos_embed(model.patch_embed(photo()))
    with pytest.raises(ValueError, match=r"is_causal=True: .*remove_algm"):
        model.blocks[0](x, is_causal=True)


class Maskless(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x)


@torch.no_grad()
def test_attention_without_a_mask():
    model = build("ViT")
    model.blocks[1].attn = Maskless(model.blocks[1].attn)
    with pytest.raises(ValueError, match=r"proportional_attention=True .* block 2 of VisionTransformer \(Block\)"):
        apply_algm(model)
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block
    apply_algm(model, proportional_attention=False, **SETTINGS)
    with pytest.raises(ValueError, match="proportional_attention=True"):
        model.algm.proportional_attention = True
    assert model.algm.proportional_attention is False


@torch.no_grad()
def test_proportional_attention_is_attention_to_the_copies():
    """A merged token of size s counts as s equal tokens, as if it were unmerged before attention."""
    model, image = build("ViT"), photo(batch=1)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False)
    outputs = block_outputs(model, image)
    again = model.blocks[2]
    full = outputs[1]  # copies of the merged tokens, on the full grid
    remove_algm(model)
    torch.testing.assert_close(again(full), outputs[2], atol=1e-5, rtol=1e-5)
    assert not torch.equal(full[:, 1:], full[:, 1:2].expand_as(full[:, 1:]))
