"""open_clip's ViT, patched: its outputs, its other tower, and its training."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm
from algm_patch.patching.find_vit import find_vit
from tests.support.cases_hub import clip
from tests.support.contract import SETTINGS
from tests.support.counting import record_unmerges
from tests.support.models import photo
from tests.support.training import assert_same, gradients


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["own blocks", "custom blocks"])
@pytest.mark.parametrize("indices", [None, 1, 2, [0], [0, 2, 4], [-1, -2]])
def test_clip_intermediates(options, indices, monkeypatch):
    model, image, unmerged = clip(**options), photo(), record_unmerges(monkeypatch)
    apply_algm(model, **SETTINGS)
    x, outputs = model._embeds(image), []
    for block in model.transformer.resblocks:
        x = block(x)
        outputs.append(x)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31
    unmerged.clear()
    torch.testing.assert_close(model(image), model._pool(outputs[-1])[0] @ model.proj)
    assert len(unmerged) == 1
    layers = range(5)
    taken = list(layers) if indices is None else layers[-indices:] if isinstance(indices, int) else indices
    taken = sorted(layers[i] for i in taken)
    for early in (False, True):
        unmerged.clear()
        found = model.forward_intermediates(image, indices, stop_early=early, output_extra_tokens=True)
        assert len(unmerged) == len({*taken, taken[-1] if early else 4})
        for patches, prefix, i in zip(
            found["image_intermediates"], found["image_intermediates_prefix"], taken, strict=True
        ):
            torch.testing.assert_close(patches, outputs[i][:, 1:].mT.unflatten(2, (6, 5)))
            torch.testing.assert_close(prefix, outputs[i][:, :1])
        last = outputs[taken[-1] if early else -1]
        torch.testing.assert_close(found["image_features"], model._pool(last)[0] @ model.proj)


@torch.no_grad()
@pytest.mark.parametrize("pool", [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 4}])
def test_clip_pooling_sees_the_full_grid(pool):
    options = {**pool, "output_tokens": True}
    model, image = clip(**options), photo()
    expected = model(image)
    apply_algm(model, **SETTINGS)
    found = model(image)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert not torch.equal(found[0], expected[0])
    assert model.algm.tokens_per_layer[-1] < 31


def test_clip_patch_dropout_is_refused_while_it_drops():
    model = apply_algm(clip(patch_dropout=0.5), **SETTINGS)
    model(photo())
    with pytest.raises(ValueError, match=r"block 1 was given \[2, 16, 64\] .*patch dropout"):
        model.train()(photo())


@torch.no_grad()
def test_clip_text_tower_of_the_same_blocks_is_left_alone():
    model = pytest.importorskip("open_clip.model").CLIP(
        32,
        {"image_size": (96, 80), "patch_size": 16, "width": 64, "layers": 5, "head_width": 16},
        {"context_length": 9, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2},
    )
    model.eval()
    text, image = torch.randint(20, (2, 9)), photo()
    expected = model.encode_text(text)
    before = model.encode_image(image)
    trunk: Any = find_vit(model)[0]
    assert trunk is model.visual
    apply_algm(model, **SETTINGS)
    assert type(model.transformer.resblocks[0]) is not type(model.visual.transformer.resblocks[0])
    assert torch.equal(model.encode_text(text), expected)
    assert not torch.equal(model.encode_image(image), before)
    assert model.algm.tokens_per_layer[-1] < 31


@torch.no_grad()
def test_clip_with_a_tower_of_timm():
    tower = pytest.importorskip("open_clip.timm_model").TimmModel("vit_xsmall_patch16_clip_224", 32).eval()
    image = photo(grid=(14, 14))
    expected = tower(image)
    apply_algm(tower, **SETTINGS)
    assert tower(image).shape == expected.shape == (2, 32)
    assert not torch.equal(tower(image), expected)
    assert tower.algm.tokens_per_layer[-1] < 197


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["own blocks", "custom blocks"])
def test_clip_training_and_recomputation(options):
    model = apply_algm(clip(ls_init_value=0.1, **options).train(), **SETTINGS)
    images = [photo(seed=1), photo(seed=2)]

    def gradients_of(forward):
        outputs = [forward(image) for image in images]
        return gradients(model, outputs[0].square().mean() + outputs[1].pow(3).mean())

    expected = gradients_of(model)
    assert model.algm.tokens_per_layer[-1] < 31
    assert len(expected) == len(list(model.parameters()))
    if options:  # open_clip's own checkpointing hands these blocks arguments that they do not take
        found = gradients_of(lambda image: checkpoint(model, image, use_reentrant=False))
    else:
        model.set_grad_checkpointing()
        found = gradients_of(model)
    assert_same(found, expected, atol=0, rtol=0)


def test_clip_runs_alike_with_and_without_gradients():
    """Without gradients, torch computes unmerged attention in another way."""
    model, image = apply_algm(clip(), **SETTINGS), photo()
    with torch.no_grad():
        expected = model(image)
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)
