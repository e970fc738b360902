"""Readers of the tokens of unlike images, between and behind the blocks, see each image's own."""

import pytest
import torch

from algm_patch import apply_algm
from tests.support import cases_segmenter, models_huggingface
from tests.support.batches import CLOSE, assert_as_alone, patched, prepare, unlike
from tests.support.models import build, photo, read_every_block


@pytest.mark.parametrize("every_block", [False, True])
@torch.no_grad()
def test_intermediates(every_block):
    model = build("ViT")
    images = unlike(photo())
    patched(model, model.forward_features, images)
    if every_block:
        read_every_block(model)
    options = {"indices": [1, 3], "return_prefix_tokens": True, "norm": True}
    last, levels = model.forward_intermediates(images, **options)
    assert len(set((model.algm.token_map.sizes > 0).sum(1).tolist())) > 2
    for i in range(len(images)):
        own_last, own_levels = model.forward_intermediates(images[i : i + 1], **options)
        torch.testing.assert_close(last[i : i + 1], own_last, **CLOSE)
        for level, own in zip(levels, own_levels, strict=True):
            for part, own_part in zip(level, own, strict=True):
                torch.testing.assert_close(part[i : i + 1], own_part, **CLOSE)


@pytest.mark.parametrize("family", ["DINOv2", "BEiT, bias per layer", "SigLIP", "Data2Vec, both, eager"])
@torch.no_grad()
def test_hidden_states(family):
    prepared = prepare(f"transformers {family}")
    patched(prepared.model, prepared.final_tokens, prepared.images)

    def states(images):
        inputs = models_huggingface.inputs(family, images)
        return torch.stack(prepared.model(**inputs, output_hidden_states=True).hidden_states, 1)

    assert len(set(assert_as_alone(prepared.model.algm, states, prepared.images))) > 2


@torch.no_grad()
def test_hooks_on_blocks_see_and_change_the_full_grid():
    model, images, seen = build("ViT"), unlike(photo()), []
    patched(model, model.forward_features, images)

    def change(_module, _inputs, output):
        seen.append(output.shape)
        return output + torch.linspace(0, 1, output.shape[1])[:, None]

    model.blocks[2].register_forward_hook(change)
    assert len(set(assert_as_alone(model.algm, model.forward_features, images))) > 2
    assert seen == [(len(images), 31, 64)] + [(1, 31, 64)] * len(images)


@torch.no_grad()
def test_blocks_run_by_a_loop_that_adds_prompts():
    """Every block gives back the full grid. Two prompts join the prefix after the second block, and the loop writes."""
    model, images = build("ViT"), unlike(photo())
    prompts = torch.randn(2, 64)

    def loop(images):
        x = model._pos_embed(model.patch_embed(images))
        for layer, block in enumerate(model.blocks):
            if layer == 2:
                x = torch.cat([x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1:]], 1)
            x = block(x)
            assert x.shape == (len(images), 31 if layer < 2 else 33, 64)
            x = x + 0.1 * x.roll(1, 1)
        return x

    patched(model, model.forward_features, images, gbm_layers=[2, 4])
    assert len(set(assert_as_alone(model.algm, loop, images))) > 2


@torch.no_grad()
def test_the_handle_takes_and_unmerges_tokens_of_unlike_images():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images, restore=False)
    features = model.forward_features(images)
    merged = model.algm.token_map.take(features)
    assert merged.shape == (4, model.algm.token_map.sizes.shape[1], 64)
    assert torch.equal(model.algm.unmerge(merged), features)
    assert torch.equal(model.algm.unmerge(merged[:, 1:]), features[:, 1:])
    assert model.algm.tokens_per_layer[-1] == merged.shape[1]


@pytest.mark.parametrize("kind", cases_segmenter.KINDS)
@torch.no_grad()
def test_a_decoder_on_merged_tokens_of_unlike_images(kind):
    decoder, options = cases_segmenter.KINDS[kind]
    model, images = cases_segmenter.build(decoder, **options), unlike(photo())
    patched(model, model, images, unmerge_at="after_head")
    assert len(set(assert_as_alone(model.algm, model, images))) > 2
    if decoder == "linear":  # which sees each token by itself
        masks = model(images)
        apply_algm(model, clap_layer=1, gbm_layers=[3], tau=model.algm.tau)
        torch.testing.assert_close(model(images), masks, **CLOSE)


@torch.no_grad()
def test_decoding_of_unlike_images_after_another_encoding():
    model, images = cases_segmenter.build("mask"), unlike(photo())
    patched(model, model, images, unmerge_at="after_head")
    others = images.flip(0) + 0.1
    expected = [model.decoder(model.encoder(x, return_features=True)[:, 1:], (96, 80)) for x in (images, others)]
    features = [model.encoder(x, return_features=True)[:, 1:] for x in (images, others)]
    for tokens, masks in zip(reversed(features), reversed(expected), strict=True):
        assert torch.equal(model.decoder(tokens, (96, 80)), masks)
