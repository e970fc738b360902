"""Tokens of unlike images go through norms, projections and MLPs in one row."""

import copy
import pickle

import pytest
import torch

from algm_patch import apply_algm
from algm_patch.functional import TokenMap, clap, gbm
from algm_patch.patching.find_vit import find_vit
from tests.support.batches import patched, prepare, unlike
from tests.support.models import build, photo
from tests.support.threads import run_in_threads

# Parts of a block that run behind its merge, and before.
NORMS_AND_MLPS = {
    "timm ViT": (("norm2", "mlp"), ("norm1", "attn.qkv", "attn.proj")),
    "timm EVA-02": (("norm2", "mlp"), ("norm1", "attn", "attn.proj")),
    "timm ResPostBlock": (("mlp", "norm2"), ("attn.qkv", "norm1")),
    "transformers DINOv2": (("norm2", "mlp"), ("norm1", "layer_scale1")),
    "transformers CLIP": (("layer_norm2", "mlp"), ("layer_norm1", "self_attn.k_proj")),
    "Segmenter mask transformer": (("norm2", "mlp"), ("norm1", "attn.qkv", "attn.proj")),
    "hub DINOv2": (("norm2", "mlp"), ("norm1", "attn.qkv", "attn.proj")),
}


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("name", NORMS_AND_MLPS)
@torch.no_grad()
def test_norms_projections_and_mlps_run_on_the_sum_of_the_tokens(name, proportional):
    """They run once for all images. The merges are in blocks 1 and 3, between attention and MLP."""
    prepared, (behind, before) = prepare(name), NORMS_AND_MLPS[name]
    model, images, final_tokens = prepared.model, prepared.images, prepared.final_tokens
    length = final_tokens(images[:1]).shape[1]
    patched(model, final_tokens, images, gbm_layers=[], proportional_attention=proportional)
    final_tokens(images)
    after_clap = int((model.algm.token_map.sizes > 0).sum())
    model.algm.gbm_layers = [3]
    final_tokens(images)
    after_gbm = int((model.algm.token_map.sizes > 0).sum())
    assert after_gbm < after_clap < len(images) * length
    whole, clapped, matched = (len(images), length), (1, after_clap), (1, after_gbm)
    seen: dict[tuple[int, str], list[tuple[int, ...]]] = {}
    for layer, block in enumerate(find_vit(model)[1].blocks):
        for part in (*before, *behind):
            block.get_submodule(part).register_forward_pre_hook(
                lambda _, inputs, key=(layer, part): seen.setdefault(key, []).append(tuple(inputs[0].shape[:2]))
            )
    final_tokens(images)
    for parts, expected in (
        (before, [whole, clapped, clapped, matched, matched]),
        (behind, [clapped, clapped, matched, matched, matched]),
    ):
        for part in parts:
            assert [seen[layer, part] for layer in range(5)] == [[shape] for shape in expected]


@torch.no_grad()
def test_by_default_images_merge_by_themselves_in_eval_mode_and_together_in_training():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images)

    def counts(batch):
        model.algm.batch = batch
        model(images)
        return (model.algm.token_map.sizes > 0).sum(1).tolist()

    model.algm.gbm_layers = []
    alone = counts("image")
    assert len(set(alone)) > 2
    assert counts("min") == [max(alone)] * 4
    assert counts("auto") == alone
    model.train()
    assert counts("auto") == [max(alone)] * 4
    assert counts("image") == alone
    assert counts("min") == [max(alone)] * 4


@pytest.mark.parametrize("batch", ["other", None, 1])
def test_another_way_to_batch_is_refused(batch):
    with pytest.raises(ValueError, match=f"batch is 'auto', 'image' or 'min', got {batch!r}"):
        apply_algm(build("ViT"), batch=batch)
    model = apply_algm(build("ViT"), batch="min")
    with pytest.raises(ValueError, match="batch is 'auto'"):
        model.algm.batch = batch
    assert model.algm.batch == "min"
    x = torch.randn(2, 17, 4)
    with pytest.raises(ValueError, match=f"batch is 'image' or 'min', got {batch!r}"):
        clap(x, (4, 4), 0.5, batch=batch)
    with pytest.raises(ValueError, match=f"batch is 'image' or 'min', got {batch!r}"):
        gbm(x, TokenMap.identity(2, 17), layer=1, batch=batch)


@torch.no_grad()
def test_copies_after_unlike_images():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images)
    expected = model(images)
    assert model.algm.token_map.packing is not None
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), expected)
        assert torch.equal(twin.algm.token_map.labels, model.algm.token_map.labels)
        assert twin.algm.batch == "auto"


@torch.no_grad()
def test_the_handle_prints_the_range_of_tokens():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images)
    model.algm.gbm_layers = []
    model(images)
    counts = (model.algm.token_map.sizes > 0).sum(1) - 1  # without the prefix
    least, most = counts.min(), counts.max()
    model.algm.gbm_layers = [3]
    model(images)
    after = (model.algm.token_map.sizes > 0).sum(1) - 1
    lines = str(model.algm).splitlines()
    assert f"    layer 1: CLAP 30 -> {least} to {most}, tau {model.algm.tau:.4f}" in lines
    (line,) = [line for line in lines if "layer 3: GBM" in line]
    assert line.startswith(f"    layer 3: GBM {least} to {most} -> {after.min()} to {after.max()}, tau ")
    model(images[:1])
    assert " to " not in str(model.algm)


@torch.no_grad()
def test_threads():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images)
    batches = [images, images.flip(0)[:3]]
    expected = [model.forward_features(batch) for batch in batches]

    def job(batch):
        def run():
            with torch.no_grad():
                return model.forward_features(batch), model.algm.token_map.sizes.shape[0]

        return run

    for found, wanted in zip(run_in_threads([job(batch) for batch in batches]), expected, strict=True):
        for output, length in found:
            assert torch.equal(output, wanted)
            assert length == len(wanted)
