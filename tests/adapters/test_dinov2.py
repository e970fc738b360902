"""torch.hub's DINOv2, patched: its outputs and its attention."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.attention import attend
from tests.support.cases_hub import DINOS, dino
from tests.support.contract import SETTINGS
from tests.support.counting import record_unmerges
from tests.support.models import photo


@pytest.fixture(params=DINOS)
def model(request):
    return dino(**DINOS[request.param]())


def block_outputs(model, image):
    x = model.prepare_tokens_with_masks(image)
    outputs = []
    for block in model.blocks[0] if model.chunked_blocks else model.blocks:
        x = block(x)
        outputs.append(x)
    return outputs


@torch.no_grad()
def test_dino_features(model, monkeypatch):
    image, unmerged = photo("DINOv2"), record_unmerges(monkeypatch)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    prefix = 1 + model.num_register_tokens
    assert f"grid 6x5 + {prefix} prefix" in repr(model.algm)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30 + prefix
    unmerged.clear()
    features = model.forward_features(image)
    assert len(unmerged) == 1
    torch.testing.assert_close(features["x_prenorm"], outputs[-1])
    torch.testing.assert_close(features["x_norm_patchtokens"], model.norm(outputs[-1])[:, prefix:])
    torch.testing.assert_close(model(image), features["x_norm_clstoken"])
    assert "every block gave back" not in repr(model.algm)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 3, [1], [0, 2, 3], (4,)])
def test_dino_intermediate_layers(model, monkeypatch, n):
    image, unmerged = photo("DINOv2"), record_unmerges(monkeypatch)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    taken = list(range(5 - n, 5)) if isinstance(n, int) else list(n)
    prefix = 1 + model.num_register_tokens
    for norm in (False, True):
        unmerged.clear()
        found = model.get_intermediate_layers(image, n, reshape=True, return_class_token=True, norm=norm)
        assert len(unmerged) == len(taken)
        for (patches, class_token), layer in zip(found, taken, strict=True):
            full = model.norm(outputs[layer]) if norm else outputs[layer]
            torch.testing.assert_close(class_token, full[:, 0])
            torch.testing.assert_close(patches, full[:, prefix:].mT.unflatten(2, (6, 5)))


@torch.no_grad()
def test_dino_masked_patches_stay_in_place():
    model, image = dino(), photo("DINOv2")
    masks = torch.rand(2, 30) < 0.3
    expected = model.forward_features(image, masks)
    apply_algm(model, gbm_layers=[], tau=1.05)
    assert torch.equal(model.forward_features(image, masks)["x_prenorm"], expected["x_prenorm"])
    model.algm.tau = -1
    assert model.forward_features(image, masks)["x_prenorm"].shape == (2, 31, 64)
    assert model.algm.tokens_per_layer[-1] == 1 + 6 + 6  # windows, and the column left over


def test_dino_in_chunks_is_refused():
    with pytest.raises(ValueError, match=r"model\.blocks\[0\], model\.blocks\[1\].*block_chunks=0"):
        apply_algm(dino(depth=4, block_chunks=2))


def test_dino_lists_of_crops_are_refused():
    model = apply_algm(dino(), **SETTINGS)
    with pytest.raises(ValueError, match=r"list of crops.*one after the other, or call remove_algm"):
        model.forward_features([photo("DINOv2"), photo("DINOv2", grid=(3, 3))], [None, None])
    model(photo("DINOv2"))


@torch.no_grad()
def test_dino_fused_attention_is_the_blocks_own():
    attention, x = dino().blocks[2].attn, torch.randn(2, 31, 64)
    torch.testing.assert_close(attend(attention, x, None, 4), attention(x), atol=1e-5, rtol=1e-5)
    attention.attn_drop = 0.9999
    torch.testing.assert_close(attend(attention, x, None, 4), attention(x), atol=1e-5, rtol=1e-5)
    attention.train()
    torch.manual_seed(0)
    expected = attention(x)
    torch.manual_seed(0)
    torch.testing.assert_close(attend(attention, x, None, 4), expected)


@torch.no_grad()
def test_dino_proportional_attention_is_attention_to_the_copies(model):
    image = photo("DINOv2", batch=1)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False)
    outputs = block_outputs(model, image)
    block = (model.blocks[0] if model.chunked_blocks else model.blocks)[2]
    remove_algm(model)
    torch.testing.assert_close(block(outputs[1]), outputs[2], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_dino_hooks_on_attention_are_not_skipped_in_silence():
    model, image, seen = apply_algm(dino(), **SETTINGS, batch="min"), photo("DINOv2"), []
    model.blocks[3].attn.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    with pytest.raises(ValueError, match="this MemEffAttention has hooks"):
        model(image)
    model.algm.proportional_attention = False
    model(image)
    assert seen == [model.algm.tokens_per_layer[2]]


@torch.no_grad()
def test_dino_attention_of_another_kind():
    model, lengths = dino(), []
    attention: Any = type(model.blocks[0].attn)

    class Listening(attention):
        def forward(self, x, attn_bias=None):
            lengths.append(x.shape[1])
            return super().forward(x, attn_bias)

    model.blocks[3].attn.__class__ = Listening
    with pytest.raises(ValueError, match=r"proportional_attention=True .* block 4"):
        apply_algm(model)
    apply_algm(model, **SETTINGS, proportional_attention=False, batch="min")
    model(photo("DINOv2"))
    assert lengths == [model.algm.tokens_per_layer[2]]
