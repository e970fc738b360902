"""Batches of unlike images: every image merges by its own content, as if it were alone."""

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cases_hub
import cases_segmenter
import models_huggingface
import pytest
import torch
from conftest import golden_files, read_golden
from hypothesis import given
from hypothesis import strategies as st
from models import build, photo, read_every_block
from test_contract import CASES
from test_training import assert_same, checkpointed, gradients, run_in_threads
from timm.layers import DropPath, set_reentrant_ckpt
from torch import Tensor, nn
from torch.nn.functional import interpolate

from algm_patch import apply_algm
from algm_patch.core.matching import num_proposals
from algm_patch.core.packing import Packing
from algm_patch.core.plan import one_by_one, proposals
from algm_patch.core.thresholds import Share
from algm_patch.functional import TokenMap, clap, gbm
from algm_patch.patching.find_vit import find_vit

# Of every way that images go through attention: packed or one after the other, with masks, biases, rotary angles.
FEW = (
    "timm ViT",
    "timm ParallelThingsBlock",
    "timm differential attention",
    "timm EVA-02",
    "timm RoPE, mixed",
    "timm BEiT, shared bias",
    "timm relative positions, class token",
    "timm NaFlex, RoPE",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "transformers ViT, eager",
    "Segmenter mask transformer",
    "mmseg ViT",
    "EVA-01 BEiTBaseline, both biases",
    "hub DINOv2, 4 registers",
    "open_clip",
)
FEWER = (
    "timm ViT",
    "timm RoPE, mixed",
    "timm BEiT, shared bias",
    "timm NaFlex, RoPE",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "hub DINOv2, 4 registers",
    "open_clip",
)
WITH_MASKS = (
    "timm ViT",
    "timm ParallelThingsBlock",
    "timm differential attention",
    "timm EVA-02",
    "timm RoPE, mixed",
    "timm NaFlex, RoPE",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "transformers ViT, eager",
    "open_clip",
    "open_clip, custom blocks",
)
WITH_KEYS = (
    "timm ViT",
    "timm Perception Encoder",
    "transformers DINOv3",
    "transformers ViT, eager",
    "Segmenter mask transformer",
    "hub DINOv2, 4 registers",
)


def unlike(like: Tensor) -> Tensor:
    """[4, 3, H, W] of the size of these images: smooth, noise, almost nothing, and half of each of the first two."""
    size, generator = like.shape[2:], torch.Generator().manual_seed(1)
    noise = torch.randn(3, 3, *size, generator=generator)
    smooth = interpolate(torch.randn(2, 3, 2, 2, generator=generator), size, mode="bilinear")
    mixed = smooth[1].clone()
    mixed[:, : size[0] // 2] = noise[1, :, : size[0] // 2]
    return torch.stack([smooth[0], noise[0], 0.05 * noise[2], mixed])


def tau_between(similarity: Tensor) -> float:
    """In the widest gap of the middle half of all similarities, where rounding decides nothing."""
    values = similarity.flatten().sort().values
    values = values[len(values) // 4 : len(values) - len(values) // 4]
    gap = values.diff().argmax()
    return values[gap : gap + 2].mean().item()


def patched(model, call, images, **settings):
    """The model with CLAP's threshold between the windows of these images, unless the settings say what it is."""
    apply_algm(model, **{"clap_layer": 1, "gbm_layers": [3], **settings})
    if model.algm.clap_layer is not None and "tau" not in settings:
        call(images)
        model.algm.tau = tau_between(model.algm.window_similarity)
    return model


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def assert_as_alone(algm, call, images, tolerance=CLOSE):
    """Each image's output and map in the batch are those of the image alone. Returns their numbers of tokens."""
    together, token_map = call(images), algm.token_map
    counts = []
    for i in range(len(images)):
        torch.testing.assert_close(together[i : i + 1], call(images[i : i + 1]), **tolerance)
        own, count = algm.token_map, algm.token_map.sizes.shape[1]
        assert torch.equal(token_map.labels[i], own.labels[0])
        assert torch.equal(token_map.sizes[i, :count], own.sizes[0])
        assert not token_map.sizes[i, count:].any()
        counts.append(count)
    assert token_map.sizes.shape == (len(images), max(counts))
    assert (token_map.sizes.sum(1) == token_map.labels.shape[1]).all()
    return counts


@dataclass(frozen=True)
class Prepared:
    model: Any
    images: Tensor
    call: Callable[..., Tensor]
    """Final tokens of images."""


def prepare(name):
    case = CASES[name]
    model = case.build()
    return Prepared(model, unlike(case.image()), lambda images, **inputs: case.tokens(model, images, **inputs))


@pytest.fixture(params=CASES)
def every(request):
    with torch.no_grad():
        yield prepare(request.param)


@pytest.fixture(params=FEW)
def few(request):
    with torch.no_grad():
        yield prepare(request.param)


# -- every kind of model


def test_every_image_as_if_it_were_alone(every):
    model, images, call = every.model, every.images, every.call
    patched(model, call, images)
    assert len(set(assert_as_alone(model.algm, call, images))) > 2
    expected, order = call(images), torch.tensor([3, 0, 2, 1])
    others = images[order]
    others[0] = 3 * torch.randn_like(others[0])
    torch.testing.assert_close(call(others)[1:], expected[order][1:], **CLOSE)


@pytest.mark.parametrize(
    "settings",
    [
        {"gbm_layers": [2, 3, 5], "gbm_tau": "tau"},
        {"gbm_layers": [2, 3, 5], "gbm_tau": [0.9, 0.8, 0.7], "proportional_attention": False},
        {"clap_layer": 2, "gbm_layers": [2], "gbm_tau": 0.6, "tau": "auto"},
        {"clap_layer": None, "gbm_layers": [1, 3]},
        {"gbm_layers": [], "window": (3, 2)},
        {"clap_layer": 3, "gbm_layers": [5], "place": "after_mlp"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FEWER)
@torch.no_grad()
def test_whatever_the_settings(name, settings):
    few = prepare(name)
    patched(few.model, few.call, few.images, **settings)
    assert len(set(assert_as_alone(few.model.algm, few.call, few.images))) > 1


@pytest.mark.parametrize("metric", ["key", "query", "value"])
@pytest.mark.parametrize("name", WITH_KEYS)
@torch.no_grad()
def test_whatever_is_compared(name, metric):
    few = prepare(name)
    patched(few.model, few.call, few.images, compare=metric)
    assert len(set(assert_as_alone(few.model.algm, few.call, few.images))) > 1


@pytest.mark.parametrize("name", WITH_MASKS)
@torch.no_grad()
def test_with_a_mask_for_all_images(name):
    few = prepare(name)
    inputs = CASES[name].position_inputs(few.call(few.images[:1]).shape[1])
    patched(few.model, few.call, few.images)
    plain = few.call(few.images)
    assert len(set(assert_as_alone(few.model.algm, lambda images: few.call(images, **inputs), few.images))) > 1
    assert not torch.allclose(few.call(few.images, **inputs), plain, atol=1e-3)


@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize(
    "name", ["timm ViT", "timm EVA-02", "transformers ViT", "open_clip", "open_clip, custom blocks"]
)
@torch.no_grad()
def test_with_a_mask_for_each_image(name, kind):
    few = prepare(name)
    (argument,) = CASES[name].position_inputs(31)
    heads = 4
    masks = torch.randn(len(few.images), heads, 31, 31)
    if kind == "bool":
        masks = (masks < 1) | torch.eye(31, dtype=bool)
        masks = ~masks if "clip" in name else masks  # there, True is what is left out
    given = {image.data_ptr(): mask for image, mask in zip(few.images, masks, strict=True)}

    def call(images):
        mask = torch.stack([given[image.data_ptr()] for image in images])
        return few.call(images, **{argument: mask.flatten(0, 1) if "clip" in name else mask})

    patched(few.model, few.call, few.images)
    assert len(set(assert_as_alone(few.model.algm, call, few.images))) > 1


def test_images_that_are_alike_stay_an_ordinary_batch(few):
    model, call, seen = few.model, few.call, []
    patched(model, call, few.images)
    alone = call(few.images[3:4])
    copies = few.images[3:4].expand(4, -1, -1, -1)
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2]))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    together = call(copies)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(together, alone.expand_as(together), **CLOSE)
    assert model.algm.token_map.packing is None
    assert (model.algm.token_map.sizes > 0).all()
    assert {shape[0] for shape in seen} == {4}


# -- what runs on the packed tokens

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
    """Once for all images. The merges are in blocks 1 and 3, between attention and MLP."""
    few, (behind, before) = prepare(name), NORMS_AND_MLPS[name]
    model, images, call = few.model, few.images, few.call
    length = call(images[:1]).shape[1]
    patched(model, call, images, gbm_layers=[], proportional_attention=proportional)
    call(images)
    after_clap = int((model.algm.token_map.sizes > 0).sum())
    model.algm.gbm_layers = [3]
    call(images)
    after_gbm = int((model.algm.token_map.sizes > 0).sum())
    assert after_gbm < after_clap < len(images) * length
    whole, clapped, matched = (len(images), length), (1, after_clap), (1, after_gbm)
    seen = {}
    for layer, block in enumerate(find_vit(model)[1].blocks):
        for part in (*before, *behind):
            block.get_submodule(part).register_forward_pre_hook(
                lambda _, inputs, key=(layer, part): seen.setdefault(key, []).append(tuple(inputs[0].shape[:2]))
            )
    call(images)
    for parts, expected in (
        (before, [whole, clapped, clapped, matched, matched]),
        (behind, [clapped, clapped, matched, matched, matched]),
    ):
        for part in parts:
            assert [seen[layer, part] for layer in range(5)] == [[shape] for shape in expected]


# -- what else reads the tokens


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
    few = prepare(f"transformers {family}")
    patched(few.model, few.call, few.images)

    def states(images):
        inputs = models_huggingface.inputs(family, images)
        return torch.stack(few.model(**inputs, output_hidden_states=True).hidden_states, 1)

    assert len(set(assert_as_alone(few.model.algm, states, few.images))) > 2


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
    """Every block gives back the full grid; two prompts join the prefix behind the second, and the neck writes."""
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
    patched(model, model.forward_features, images)
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


# -- reduce="pick"


@torch.no_grad()
def test_each_picked_token_is_a_member_of_its_group():
    model, images, parts = build("ViT"), unlike(photo()), {}
    patched(model, model.forward_features, images, gbm_layers=[])
    model(images)
    labels, sizes = model.algm.token_map.labels, model.algm.token_map.sizes
    model.algm.reduce = "pick"
    block = model.blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: parts.update(x=inputs[0]))
    block.attn.register_forward_hook(lambda _, inputs, output: parts.update(attended=output))
    block.norm2.register_forward_pre_hook(lambda _, inputs: parts.update(merged=inputs[0]))
    unlike_first = 0
    for _ in range(3):
        model(images)
        token_map = model.algm.token_map
        assert torch.equal(token_map.labels, labels)
        assert torch.equal(token_map.sizes, sizes)
        before, merged = parts["x"] + parts["attended"], token_map.packing.split(parts["merged"])
        for i, tokens in enumerate(merged):
            for group, token in enumerate(tokens[0]):
                members = before[i, labels[i] == group]
                assert (members == token).all(1).any()
                unlike_first += not torch.equal(members[0], token)
    assert unlike_first


@torch.no_grad()
def test_picking_in_every_merge_of_unlike_images():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images, gbm_layers=[2, 4], reduce="pick", gbm_tau=0.5)
    output, token_map = model.forward_features(images), model.algm.token_map
    assert output.isfinite().all()
    counts = (token_map.sizes > 0).sum(1)
    assert len(counts.unique()) > 1
    assert (token_map.labels.amax(1) + 1 == counts).all()
    assert (token_map.sizes.sum(1) == 31).all()


# -- modes and settings


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
    counts = (model.algm.token_map.sizes > 0).sum(1)
    least, most = counts.min(), counts.max()
    model.algm.gbm_layers = [3]
    model(images)
    after = (model.algm.token_map.sizes > 0).sum(1)
    lines = str(model.algm).splitlines()
    assert f"    layer 1: CLAP 31 -> {least} to {most}, tau {model.algm.tau:.4f}" in lines
    (line,) = [line for line in lines if "layer 3: GBM" in line]
    assert line.startswith(f"    layer 3: GBM {least} to {most} -> {after.min()} to {after.max()}, tau ")
    model(images[:1])
    assert " to " not in str(model.algm)


@torch.no_grad()
def test_an_image_that_is_not_finite_spoils_no_other():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images, gbm_layers=[2, 4])
    expected = model.forward_features(images)
    for value in (float("nan"), float("inf")):
        spoilt = images.clone()
        spoilt[1, 0, 3, 3] = value
        found = model.forward_features(spoilt)
        others = [0, 2, 3]
        torch.testing.assert_close(found[others], expected[others], **CLOSE)
        assert not found[1].isfinite().any()


@torch.no_grad()
def test_constant_images():
    model = build("ViT")
    images = torch.cat([unlike(photo())[:2], torch.zeros(1, 3, 96, 80), torch.ones(1, 3, 96, 80)])
    patched(model, model.forward_features, images)
    assert len(set(assert_as_alone(model.algm, model.forward_features, images))) > 1


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


# -- training


def without_chance(model):
    """In training mode, but for what is random in it."""
    model.train()
    for module in model.modules():
        if re.search("drop|rope", type(module).__name__, re.IGNORECASE):
            module.eval()
    return model


@pytest.mark.parametrize("mode", [without_chance, nn.Module.eval], ids=["train", "eval"])
@pytest.mark.parametrize("name", FEW)
def test_gradients_are_the_sum_of_those_of_each_image(name, mode):
    few = prepare(name)
    model, images = few.model.double(), few.images[[0, 1, 3]].double().requires_grad_()
    mode(model)
    with torch.no_grad():
        patched(model, few.call, images, batch="image")
    weights = torch.randn_like(few.call(images))
    assert len(set((model.algm.token_map.sizes > 0).sum(1).tolist())) > 1

    def gradient(part):
        """Of every parameter and every image."""
        found = gradients(model, (few.call(images[part]) * weights[part]).sum())
        found["images"], images.grad = images.grad, None
        return found

    together = gradient(slice(None))
    alone = [gradient(slice(i, i + 1)) for i in range(len(images))]
    total = {key: sum(one[key] for one in alone) for key in alone[0]}
    assert_same(together, total, **CLOSE)  # some models compute some parts in float32
    assert together["images"].flatten(1).any(1).all()


def test_gradcheck_of_both_merges_of_unlike_images():
    torch.manual_seed(1)
    x = torch.randn(3, 16, 3, dtype=torch.float64)
    x[0, :8] += 10
    x.requires_grad_()

    def merge(x):
        once, token_map = clap(x, (4, 4), 0.7, num_prefix_tokens=0, batch="image")
        merged, token_map = gbm(once, token_map, layer=1, tau=0.9, num_prefix_tokens=0, batch="image")
        assert token_map.packing is not None
        return merged

    assert torch.autograd.gradcheck(merge, x)


def outcomes(call, images, times):
    """[times, B]; for each run and image, the number of the first run with the same result."""
    results = torch.stack([call(images).flatten(1) for _ in range(times)])
    same = (results[:, None] - results).abs().amax(-1) < 1e-5
    return same.int().argmax(1)


@torch.no_grad()
def test_stochastic_depth_drops_each_image_by_itself():
    """One block with two branches, each dropped or not: four outcomes an image, sixteen of two images."""
    model, images = build("ViT", depth=2), unlike(photo())[:2]
    patched(model, model.forward_features, images, gbm_layers=[], batch="image")
    model.train()
    block = model.blocks[1]
    block.drop_path1, block.drop_path2 = DropPath(0.5), DropPath(0.5)
    found = outcomes(model.forward_features, images, 100)
    assert model.algm.token_map.packing is not None
    assert [len(found[:, image].unique()) for image in range(2)] == [4, 4]
    assert len(found.unique(dim=0)) == 16
    model.eval()
    assert_as_alone(model.algm, model.forward_features, images)


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_stochastic_depth_of_the_hubs_dinov2_drops_each_image_by_itself(rate):
    """Above a rate of 0.1 it skips some images of a batch, and never the only one."""
    model, images = cases_hub.dino(depth=2, drop_path_rate=rate), unlike(photo("DINOv2"))  # all of it in block 2

    def call(images):
        return model.forward_features(images)["x_prenorm"]

    patched(model, call, images, gbm_layers=[], batch="image")
    model.train()
    found = outcomes(call, images, 60)
    assert model.algm.token_map.packing is not None
    assert all(len(numbers.unique()) > 1 for numbers in found.T)
    assert len({tuple(numbers.tolist()) for numbers in found.T}) == len(images)


@pytest.mark.parametrize(
    "how", ["blocks", "blocks, reentrant", "whole model", "halves of the model", "all intermediates"]
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recomputation_of_unlike_images(how, mode):
    model = getattr(build("ViT", drop_path_rate=0.3, proj_drop_rate=0.1), mode)()
    first = unlike(photo())
    second = first.flip(0)[:3] + 0.1
    with torch.no_grad():
        patched(model, model.forward_features, first, gbm_layers=[2, 4], batch="image")

    def loss(forward):
        torch.manual_seed(0)
        total = forward(first).square().mean() + forward(second).pow(3).mean()
        assert model.algm.token_map.packing is not None
        with torch.no_grad():
            model.forward_features(photo(seed=3))
        return total

    plain = model.forward_features
    if how == "all intermediates":
        plain = lambda image: sum(model.forward_intermediates(image, output_fmt="NLC", intermediates_only=True))  # noqa: E731
    expected = gradients(model, loss(plain))
    set_reentrant_ckpt("reentrant" in how)
    try:
        found = gradients(model, loss(checkpointed(model, how)))
    finally:
        set_reentrant_ckpt(False)
    in_another_order = how in ("halves of the model", "blocks, reentrant")  # are gradients summed
    assert_same(found, expected, **({"atol": 1e-6, "rtol": 1e-5} if in_another_order else {"atol": 0, "rtol": 0}))


# -- precision, layout, determinism


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", FEW)
def test_with_deterministic_algorithms(name):
    few = prepare(name)
    patched(without_chance(few.model), few.call, few.images, batch="image")
    found = [gradients(few.model, few.call(few.images).square().mean()) for _ in range(2)]
    assert few.model.algm.token_map.packing is not None
    assert_same(*found, atol=0, rtol=0)


LAYOUTS = {
    "channels last": lambda image: image.contiguous(memory_format=torch.channels_last),
    "every other pixel": lambda image: torch.stack([image, torch.zeros_like(image)], -1).flatten(3)[..., ::2],
    "turned": lambda image: image.mT.contiguous().mT,
    "images last": lambda image: image.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_layouts_and_dtypes(layout, dtype):
    model = build("ViT").to(dtype)
    images = unlike(photo()).to(dtype)
    patched(model, model.forward_features, images, gbm_layers=[3], gbm_tau="tau")
    expected, token_map = model.forward_features(images), model.algm.token_map
    assert expected.dtype == dtype
    assert expected.isfinite().all()
    assert len((token_map.sizes > 0).sum(1).unique()) > 2
    other = LAYOUTS[layout](images)
    assert not other.is_contiguous()
    found = model.forward_features(other)
    assert torch.equal(model.algm.token_map.labels, token_map.labels)
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_half_precision(name, how):
    """What half precision does to the batch, it does to the image alone. CLAP alone, whose threshold is in a gap."""
    few = prepare(name)
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    model, images = few.model.to(dtype), few.images.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        patched(model, few.call, images, gbm_layers=[])
        counts = assert_as_alone(model.algm, few.call, images, {"atol": 0.1, "rtol": 0.1})
    assert len(set(counts)) > 1


# -- the functions


@pytest.mark.parametrize("path", golden_files("clap_3*"), ids=lambda path: path.stem)
def test_the_recorded_batch_merges_what_each_image_allows(path):
    golden, about = read_golden(path)
    grid, window = (tuple(map(int, about[key].split("x"))) for key in ("grid", "window"))
    settings = {"window": window, "num_prefix_tokens": int(about["prefix_tokens"])}
    x, tau = golden["x"], float(about["tau"])
    merged, _ = clap(x, grid, tau, **settings, batch="min")
    assert merged.shape[1] == golden["merged"].shape[1] == 251
    merged, token_map = clap(x, grid, tau, **settings, batch="image")
    counts = []
    for i, image in enumerate(x):
        alone, own = clap(image[None], grid, tau, **settings)
        counts.append(alone.shape[1])
        torch.testing.assert_close(merged[i : i + 1, : counts[-1]], alone)
        assert torch.equal(token_map.labels[i], own.labels[0])
    assert merged.shape[1] == 251
    assert sorted(counts)[-1] == 251
    assert sorted(counts)[-2] < 251


KINDS = ["random", "smooth", "constant", "zero", "nan", "inf", "huge"]


@st.composite
def batches(draw):
    """[B, P+H*W, D] float64, so that no two cosines are equal but by construction, (H, W), and P."""
    prefix, width = draw(st.integers(0, 4)), draw(st.integers(2, 6))
    grid = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(len(kinds), prefix + grid[0] * grid[1], width, generator=generator, dtype=torch.float64)
    for image, kind in zip(x, kinds, strict=True):
        patches = image[prefix:]
        if kind == "smooth":
            patches.copy_(patches.cumsum(0))
        elif kind in ("constant", "zero"):
            patches.copy_(torch.eye(width)[0] * (kind == "constant"))
        elif kind in ("nan", "inf"):
            image[draw(st.integers(0, len(image) - 1)), 0] = float(kind)
        elif kind == "huge":
            image *= 1e200
    return x, grid, prefix


def assert_images(merged, token_map, alone):
    """A batch's tokens and map are those of its images alone, and zero behind."""
    for i, (own_merged, own) in enumerate(alone):
        count = own_merged.shape[1]
        torch.testing.assert_close(merged[i : i + 1, :count], own_merged, equal_nan=True)
        assert torch.equal(token_map.labels[i], own.labels[0])
        assert torch.equal(token_map.sizes[i, :count], own.sizes[0])
        assert not merged[i, count:].any()
        assert not token_map.sizes[i, count:].any()
    assert merged.shape[1] == token_map.sizes.shape[1] == max(own.shape[1] for own, _ in alone)


@given(batches(), st.sampled_from([-1.0, 0.0, 0.5, 0.9, 1.0, 2.0, "auto"]), st.integers(1, 3), st.integers(2, 4))
def test_clap_of_anything(case, tau, high, wide):
    x, grid, prefix = case
    settings = {"window": (high, wide), "num_prefix_tokens": prefix, "batch": "image"}
    merged, token_map = clap(x, grid, tau, **settings)
    assert_images(merged, token_map, [clap(image[None], grid, tau, **settings) for image in x])


@given(batches(), st.sampled_from([-1.0, 0.5, 1.0, 2.0, "adaptive"]), st.integers(1, 40), st.integers(1, 2))
def test_gbm_of_anything(case, tau, layer, times):
    x, grid, prefix = case
    settings = {"num_prefix_tokens": prefix, "batch": "image"}
    merged, token_map = clap(x, grid, 0.5, **settings)
    alone = [clap(image[None], grid, 0.5, **settings) for image in x]
    for _ in range(times):
        if token_map.packing is not None:
            with pytest.raises(ValueError, match="gbm got images of different lengths"):
                gbm(merged, token_map, layer=layer, tau=tau, num_prefix_tokens=prefix)
        merged, token_map = gbm(merged, token_map, layer=layer, tau=tau, **settings)
        alone = [gbm(*one, layer=layer, tau=tau, **settings) for one in alone]
        assert_images(merged, token_map, alone)


@given(batches(), st.data())
def test_matching_all_images_at_once_is_matching_one_after_the_other(case, data):
    """The first is for devices on which each image by itself is slow."""
    x, _, prefix = case
    length = x.shape[1]
    counts = torch.tensor(data.draw(st.lists(st.integers(prefix + 1, length), min_size=len(x), max_size=len(x))))
    own = torch.arange(length) < counts[:, None]
    tau = data.draw(
        st.one_of(
            st.sampled_from([-1.0, 0.5, 0.9, "adaptive", Share(3, 10)]),
            st.lists(st.sampled_from([-0.5, 0.3, 2.0]), min_size=len(x), max_size=len(x)).map(torch.tensor),
        )
    )
    images = [image[None, :count] for image, count in zip(x, counts, strict=True)]
    at_once = proposals(torch.where(own[..., None], x, 0), tau, 3, prefix, "image", counts)
    one_after_the_other = one_by_one(images, tau, 3, prefix, length)
    for found, expected, count in zip(at_once[0], one_after_the_other[0], counts, strict=True):
        proposed = num_proposals(int(count), prefix)
        torch.testing.assert_close(found[:proposed], expected[:proposed], equal_nan=True)
        assert (found[proposed:] == -torch.inf).all()
        assert (expected[proposed:] == -torch.inf).all()
    found, expected = (
        TokenMap.from_leaders(leaders, own.float(), packed=True) for *_, leaders in (at_once, one_after_the_other)
    )
    assert torch.equal(found.labels[own], expected.labels[own])
    assert torch.equal(found.sizes, expected.sizes)


# -- packing

COUNTS = st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda counts: len(set(counts)) > 1)


@given(COUNTS, st.lists(st.integers(1, 3), max_size=2), st.integers(0, 3))
def test_packing_there_and_back(counts, shape, more):
    packing = Packing.of(torch.tensor(counts))
    assert (packing.longest, packing.total) == (max(counts), sum(counts))
    packed = torch.randn(1, sum(counts), *shape)
    padded = packing.unpack(packed)
    assert padded.shape == (len(counts), max(counts), *shape)
    assert torch.equal(packing.pack(padded), packed)
    start = 0
    for count, row, part in zip(counts, padded, packing.split(packed), strict=True):
        assert torch.equal(row[:count], packed[0, start : start + count])
        assert torch.equal(part, packed[:, start : start + count])
        assert not row[count:].any()
        start += count
    wider = packing.widened(more)
    expected = Packing.of(torch.tensor(counts) + more)
    assert torch.equal(wider.index, expected.index)
    assert torch.equal(wider.counts, expected.counts)
    assert (wider.longest, wider.total) == (expected.longest, expected.total)
    assert torch.equal(wider.widened(-more).index, packing.index)
    for row, count in zip(padded, counts, strict=True):
        row[count:] = torch.nan
    assert torch.equal(packing.pack(padded), packed)  # whatever stands in the padding


@given(st.integers(1, 9), st.integers(1, 5))
def test_images_of_one_length_are_not_packed(count, batch):
    assert Packing.of(torch.full((batch,), count)) is None


@st.composite
def maps(draw):
    """Maps of a few images each, from one length to different ones, as a batch and one by one."""
    batch, length = draw(st.integers(2, 4)), draw(st.integers(2, 12))
    seeds = [draw(st.lists(st.integers(0, length - 1), min_size=length, max_size=length)) for _ in range(batch)]
    leaders = torch.tensor([[min(i for i, other in enumerate(row) if other == own) for own in row] for row in seeds])
    ones = torch.ones(batch, length)
    together = TokenMap.from_leaders(leaders, ones, packed=True)
    return together, [TokenMap.from_leaders(leaders[i : i + 1], ones[:1]) for i in range(batch)]


@given(maps(), st.integers(0, 2))
def test_a_map_of_unlike_images_is_the_maps_of_each(case, prefix):
    together, alone = case
    together, alone = together.with_prefix(prefix), [own.with_prefix(prefix) for own in alone]
    batch, length = together.labels.shape
    x, pairs = torch.randn(batch, length, 3), torch.randn(batch, 2, length, length)
    merged, taken = together.merge(x), together.take(x)
    packed = together.pack(merged)
    assert torch.equal(together.unpack(packed), merged)
    assert together.shape == packed.shape[:2]
    shorter = together.without_prefix(prefix)
    start = 0
    for i, own in enumerate(alone):
        count = own.sizes.shape[1]
        torch.testing.assert_close(merged[i, :count], own.merge(x[i : i + 1])[0])
        assert not merged[i, count:].any()
        assert torch.equal(taken[i, :count], own.take(x[i : i + 1])[0])
        assert torch.equal(together.unmerge(taken)[i], own.unmerge(own.take(x[i : i + 1]))[0])
        assert torch.equal(together.pair(pairs)[i, :, :count, :count], own.pair(pairs[i : i + 1])[0])
        assert torch.equal(together.key_bias[i, ..., :count], own.key_bias[0])
        assert (together.key_bias[i, ..., count:] == -torch.inf).all()
        assert torch.equal(together.of_image(i).sizes, own.sizes)
        assert torch.equal(together.of_image(i).labels, own.labels)
        assert torch.equal(shorter.of_image(i).labels, own.without_prefix(prefix).labels)
        assert torch.equal(shorter.of_image(i).sizes, own.without_prefix(prefix).sizes)
        if together.packing is not None:
            torch.testing.assert_close(packed[0, start : start + count], own.merge(x[i : i + 1])[0])
        start += count
