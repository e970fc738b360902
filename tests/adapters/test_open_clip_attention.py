"""Attention in open_clip's ViT, patched: its masks, the weight of merged tokens, and what is refused."""

import pytest
import torch

from algm_patch import apply_algm
from algm_patch.patching.find_vit import find_vit
from tests.support.cases_hub import clip
from tests.support.contract import SETTINGS, permute_in_place_of_clap
from tests.support.groups import GROUPS, tokens_of_groups
from tests.support.models import photo

MASKS = {
    "[L, L]": lambda: torch.randn(31, 31),
    "[L, L], bool": lambda: torch.rand(31, 31) < 0.3,
    "[B * heads, L, L]": lambda: torch.randn(8, 31, 31),
    "[B * heads, L, L], bool": lambda: torch.rand(8, 31, 31) < 0.3,
}


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["own blocks", "custom blocks"])
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("kind", MASKS)
def test_clip_masks_go_with_their_tokens(options, proportional, kind, monkeypatch):
    """Masks keep their meaning: open_clip's own blocks add a bool mask, its custom blocks leave out what is True."""
    model, image, mask = clip(**options), photo(), MASKS[kind]()
    x = model._embeds(image)
    expected = model.transformer(x, attn_mask=mask)
    assert not torch.allclose(expected, model.transformer(x), atol=1e-3)
    permute_in_place_of_clap(monkeypatch)
    apply_algm(model, clap_layer=2, gbm_layers=[], proportional_attention=proportional)
    found = model.transformer(model._embeds(image), attn_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}], ids=["ResidualAttentionBlock", "CustomResidualAttentionBlock"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("masked", ["not", "alike", "by image and head"])
def test_clip_proportional_attention_is_attention_to_the_copies(options, dtype, masked):
    """The mask is alike for all members of a group, so that each copy sees what its token sees."""
    vit = find_vit(clip(**options))[1]
    block, adapter = vit.blocks[0], vit.adapters[0]
    tokens = tokens_of_groups(GROUPS if masked == "by image and head" else GROUPS[:1] * 4)
    merged, mask = torch.randn(4, 4, 64), None
    if masked != "not":
        of_groups = torch.randn(4, 4, 4, 4)
        of_groups = of_groups > 0.5 if dtype == torch.bool else of_groups
        by_head = [part[:, row][:, :, row] for part, row in zip(of_groups, tokens.token_map.labels, strict=True)]
        mask = by_head[0][0] if masked == "alike" else torch.cat(by_head)
    expected = block(tokens.token_map.unmerge(merged), attn_mask=mask)
    found = adapter.mlp_half(block, adapter.attention_half(block, merged, tokens, attn_mask=mask))
    torch.testing.assert_close(tokens.token_map.unmerge(found), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "own", "method"),
    [({}, None, "attention"), ({}, "attn", "forward"), ({"qk_norm": True}, "attn", "forward")],
)
def test_clip_attention_of_another_kind(options, own, method):
    """The block or its attention has a method of its own."""
    model, lengths = clip(**options), []
    block = model.transformer.resblocks[3]
    part = block if own is None else block.get_submodule(own)
    original = getattr(type(part), method)

    def listening(self, *args, **kwargs):
        lengths.append((*args, kwargs.get("q_x"))[0].shape[1])
        return original(self, *args, **kwargs)

    part.__class__ = type("Listening", (type(part),), {method: listening})
    with pytest.raises(ValueError, match=r"proportional_attention=True .* block 4"):
        apply_algm(model)
    apply_algm(model, **SETTINGS, proportional_attention=False, batch="min")
    model(photo())
    assert lengths == [model.algm.tokens_per_layer[2]]


def test_clip_what_is_refused():
    model = apply_algm(clip(), clap_layer=1, gbm_layers=[])
    x = model._embeds(photo())
    with pytest.raises(ValueError, match="k_x, v_x: attention to tokens other than"):
        model.transformer.resblocks[0](x, x, x)
    model = clip()
    model.transformer.resblocks[3].attn.batch_first = False
    with pytest.raises(ValueError, match=r"resblocks\[3\] cannot be patched: .*batch_first"):
        apply_algm(model)
