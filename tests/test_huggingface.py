"""transformers' own interface on patched models."""

import copy
import functools
import importlib
import inspect

import pytest
import torch

transformers = pytest.importorskip("transformers")

import models_huggingface as huggingface  # noqa: E402
from models_huggingface import FAMILIES, SQUARE, build, enliven, inputs, photo  # noqa: E402
from test_contract import permute  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoBackbone, AutoModel  # noqa: E402

from algm_patch import apply_algm, remove_algm  # noqa: E402
from algm_patch.adapters import LayerTokens  # noqa: E402
from algm_patch.adapters.huggingface_beit import relative_bias  # noqa: E402
from algm_patch.adapters.huggingface_parts import ATTENTIONS, core, first, implementation, part, returns_tuple  # noqa: E402
from algm_patch.functional import TokenMap  # noqa: E402
from algm_patch.patching.find_vit import find_vit  # noqa: E402

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
STAGES = ["stage1", "stage2", "stage3", "stage5"]
NECK = {"initializer_range": 0.2, "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16}
UPER = {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_in_channels": 64, "auxiliary_channels": 8}


def uper(model, family):
    backbone = FAMILIES[family].config(out_features=STAGES)
    return model(transformers.UperNetConfig(backbone_config=backbone, num_labels=3, initializer_range=0.2, **UPER))


def depth(config, model, **options):
    backbone = FAMILIES["DINOv2"].config(out_features=STAGES, reshape_hidden_states=False)
    return model(config(backbone_config=backbone, **NECK, **options))


def segmenter(model, family, image_size):
    config = FAMILIES[family].config(
        image_size=image_size, out_indices=[1, 2, 3, 5], num_labels=3, pool_scales=[1, 2], auxiliary_channels=8
    )
    return model(config)


def dpt(model):
    return model(transformers.DPTConfig(**{**SQUARE, **NECK}, backbone_out_indices=[0, 1, 2, 4], num_labels=3))


def sapiens(model):
    head = {"upsample_out_channels": [16], "upsample_kernel_sizes": [4]}
    convolutions = {"conv_out_channels": [8], "conv_kernel_sizes": [1]}
    return model(FAMILIES["Sapiens 2"].config(head_config={**head, **convolutions}, num_labels=3))


def eomt(model, config, attention):
    config = config(**SQUARE, num_queries=7, num_blocks=2, num_labels=3, num_upscale_blocks=1)
    config._attn_implementation = attention
    return model(config)


# Older ones divide the size of the image as one number.
SIDES = 96 if "image_size //" in inspect.getsource(transformers.BeitForSemanticSegmentation) else (96, 80)
# The model's class, how to make it, and the grid of patches (square where the head takes no other).
DENSE = {
    "BEiT": (
        "BeitForSemanticSegmentation",
        lambda model: segmenter(model, "BEiT, bias per layer", SIDES),
        (6, 6) if SIDES == 96 else (6, 5),
    ),
    "Data2Vec": (
        "Data2VecVisionForSemanticSegmentation",
        lambda model: segmenter(model, "Data2Vec, both, eager", 96),
        (6, 6),
    ),
    "DPT, segmentation": ("DPTForSemanticSegmentation", dpt, (6, 6)),
    "DPT, depth": ("DPTForDepthEstimation", dpt, (6, 6)),
    "DPT on DINOv2": (
        "DPTForDepthEstimation",
        lambda model: depth(transformers.DPTConfig, model, is_hybrid=False),
        (6, 6),
    ),
    "Depth Anything": (
        "DepthAnythingForDepthEstimation",
        lambda model: depth(
            transformers.DepthAnythingConfig, model, head_hidden_size=8, patch_size=16, reassemble_hidden_size=64
        ),
        (6, 5),
    ),
    "Sapiens 2": ("Sapiens2ForSemanticSegmentation", sapiens, (6, 5)),
    "UperNet on DINOv2": ("UperNetForSemanticSegmentation", lambda model: uper(model, "DINOv2"), (6, 5)),
    "UperNet on BEiT": ("UperNetForSemanticSegmentation", lambda model: uper(model, "BEiT, shared bias"), (6, 5)),
    "EoMT": (
        "EomtForUniversalSegmentation",
        lambda model: eomt(model, transformers.EomtConfig, "sdpa"),
        (6, 6),
    ),
    "EoMT, eager": (
        "EomtForUniversalSegmentation",
        lambda model: eomt(model, transformers.EomtConfig, "eager"),
        (6, 6),
    ),
    "EoMT on DINOv3": (
        "EomtDinov3ForUniversalSegmentation",
        lambda model: eomt(model, transformers.EomtDinov3Config, "sdpa"),
        (6, 6),
    ),
}
# Older releases do not have them all.
DENSE = {name: kind for name, kind in DENSE.items() if hasattr(transformers, kind[0])}


def make_dense(name):
    cls, make, _ = DENSE[name]
    torch.manual_seed(0)
    return enliven(make(getattr(transformers, cls)))


@pytest.fixture(params=DENSE)
def dense(request):
    """A dense model and its image."""
    return make_dense(request.param), photo(grid=DENSE[request.param][2])


def prediction(model, image):
    """What the head of a dense model gives, scaled to a standard deviation of 1."""
    output = model(pixel_values=image)
    output = getattr(output, "masks_queries_logits", output[0])
    return output / output.std()


@torch.no_grad()
def test_dense_models_whose_patches_are_shuffled_inside(dense, monkeypatch):
    model, image = dense
    expected = prediction(model, image)
    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", permute)
    apply_algm(model, clap_layer=2, gbm_layers=[])
    torch.testing.assert_close(prediction(model, image), expected, atol=1e-3, rtol=1e-3)
    prefix = model.algm.token_map.labels.shape[1] - image.shape[2] * image.shape[3] // huggingface.PATCH**2
    assert not torch.equal(
        model.algm.token_map.labels[0, prefix:], torch.arange(len(model.algm.token_map.labels[0]))[prefix:]
    )


@torch.no_grad()
def test_dense_models(dense):
    model, image = dense
    expected = prediction(model, image)
    apply_algm(model, **SETTINGS)
    found = prediction(model, image)
    assert found.shape == expected.shape
    assert not torch.allclose(found, expected, atol=1e-3)
    assert model.algm.tokens_per_layer[0] < image.shape[2] * image.shape[3] // huggingface.PATCH**2
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(prediction(model, image), expected)
    remove_algm(model)
    assert torch.equal(prediction(model, image), expected)


def test_dense_models_train(dense):
    model, image = dense
    model.train()

    def gradients():
        model.zero_grad()
        prediction(model, image).cos().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected = gradients()
    apply_algm(model, **SETTINGS)
    found = gradients()
    assert model.algm.tokens_per_layer[0] < image.shape[2] * image.shape[3] // huggingface.PATCH**2
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.any() == expected[name].any(), name


@pytest.mark.parametrize("name", [name for name in DENSE if "EoMT" in name])
def test_the_queries_of_eomt_join_the_prefix(name):
    model = apply_algm(make_dense(name), **SETTINGS)
    model(pixel_values=photo(grid=(6, 6)))
    prefix = 7 + model.embeddings.num_prefix_tokens
    assert torch.equal(model.algm.token_map.labels[:, :prefix], torch.arange(prefix).expand(2, -1))
    third, fourth = model.algm.tokens_per_layer[2:4]
    assert fourth == third + 7


BACKBONES = {
    "Dinov2Backbone": "DINOv2",
    "Dinov2WithRegistersBackbone": "DINOv2, registers",
    "DINOv3ViTBackbone": "DINOv3",
    "BeitBackbone": "BEiT, bias per layer",
    "PixioBackbone": "Pixio",
    "Sapiens2Backbone": "Sapiens 2",
}
BACKBONES = {name: family for name, family in BACKBONES.items() if hasattr(transformers, name)}


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("stages", [["stage5"], ["stage1", "stage4"], ["stem", "stage2", "stage3", "stage5"]])
def test_backbones(name, stages, monkeypatch):
    model = build(BACKBONES[name], name, out_features=stages)
    expected = model(photo()).feature_maps
    apply_algm(model, **SETTINGS)
    found = model(photo()).feature_maps
    assert [x.shape for x in found] == [x.shape for x in expected] == [(2, 64, 6, 5)] * len(stages)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30
    for stage, x in zip(stages, found, strict=True):
        layer = 0 if stage == "stem" else int(stage[-1])
        prefix = model.algm.token_map.labels.shape[1] - 30
        groups = model.algm._tracker.last.steps[max(layer - 1, 0)].after  # of which each patch has a copy
        x = nn.functional.pad(x.flatten(2).mT, (0, 0, prefix, 0))
        assert torch.equal(groups.unmerge(groups.take(x)), x) == (layer > 0)
    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", permute)
    model.algm.gbm_layers = []
    for x, y in zip(model(photo()).feature_maps, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states(family):
    model, image = build(family), photo()
    plain = model(**inputs(family, image), output_hidden_states=True).hidden_states
    apply_algm(model, **SETTINGS)
    expected = model(**inputs(family, image))
    found = model(**inputs(family, image), output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert [x.shape for x in found.hidden_states] == [x.shape for x in plain]
    assert len(found.hidden_states) == 6
    assert torch.equal(found.hidden_states[0], plain[0])


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if "eager" in family])
def test_attention_maps_have_the_size_of_their_layer(family):
    model, image = build(family), photo()
    length = model(**inputs(family, image)).last_hidden_state.shape[1]
    apply_algm(model, **SETTINGS, batch="min")
    if returns_tuple(find_vit(model)[1].blocks[0]):
        with pytest.raises(ValueError, match=r"output_attentions=True: .* beside its tokens.*remove_algm"):
            model(**inputs(family, image), output_attentions=True)
        return
    maps = model(**inputs(family, image), output_attentions=True).attentions
    assert [x.shape[-1] for x in maps] == [length, *model.algm.tokens_per_layer[:-1]]
    torch.testing.assert_close(maps[-1].sum(-1), torch.ones(maps[-1].shape[:-1]))
    model.algm.batch = "image"
    image = next(image for image in map(photo_of, range(9)) if leaves_different_numbers(model, inputs(family, image)))
    with pytest.raises(ValueError, match=r"output_attentions=True: .*model.algm.batch = 'min'"):
        model(**inputs(family, image), output_attentions=True)


def photo_of(seed):
    return photo(seed=seed)


def leaves_different_numbers(model, call):
    model(**call)
    return not model.algm.token_map.sizes.all()


CHANCE = {
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.2,
    "attention_dropout": 0.2,
    "drop_path_rate": 0.4,
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_halves_are_the_block_in_training_too(family):
    """With the same numbers drawn, by each of its dropouts and stochastic depths in turn."""
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
        half = adapter.attention_half(block, x, LayerTokens(None, None, 0), *others, **kwargs)
        found = adapter.pack(block, adapter.mlp_half(block, half))
        assert torch.equal(first(found), first(expected))
        assert not torch.equal(first(block(x, *others, **kwargs)), first(expected))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_patching_follows_a_call_for_hidden_states(family):
    """Some releases leave forwards on the layers and their attention then."""
    model, image = build(family), photo()
    expected = model(**inputs(family, image)).last_hidden_state
    merged = apply_algm(copy.deepcopy(model), **SETTINGS)(**inputs(family, image)).last_hidden_state
    ask = {"output_hidden_states": True, "output_attentions": "eager" in family}
    model(**inputs(family, image), **ask)
    apply_algm(model, **SETTINGS)
    assert torch.equal(model(**inputs(family, image)).last_hidden_state, merged)
    found = model(**inputs(family, image), output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, merged)
    assert {x.shape[1] for x in found.hidden_states} == {expected.shape[1]}
    assert torch.equal(copy.deepcopy(model)(**inputs(family, image)).last_hidden_state, merged)
    model.algm.compare = "key"
    model(**inputs(family, image))
    remove_algm(model)
    assert torch.equal(model(**inputs(family, image)).last_hidden_state, expected)
    assert not any(hasattr(module, "_algm") for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_read_is_unmerged(family, monkeypatch):
    model = apply_algm(build(family), **SETTINGS)
    unmerged = []
    monkeypatch.setattr(TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: unmerged.append(1) or real(self, x))
    model(**inputs(family, photo()))
    # Encoders with a shared bias of their own resize it to the length of each layer's input, which must be whole then.
    resizes = hasattr(getattr(model, "encoder", None), "relative_position_bias") and FAMILIES[family].call
    assert len(unmerged) == (5 if resizes else 1)


def use(model, attention):
    """As set_attn_implementation does, for attention that this machine may not have."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention


def follows_config(family):
    """Return whether the attention of a family is computed by what its config names, whenever that changes."""
    model = build(family)
    use(model, "another")
    return implementation(part(find_vit(model)[1].blocks[0], ATTENTIONS)) == "another"


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
    find_vit(model)[1].blocks[1].register_forward_pre_hook(lambda *_: use(model, attention))
    with pytest.raises(
        ValueError, match=rf"'{attention}'.*set_attn_implementation\('sdpa'\).*proportional_attention = False"
    ):
        model(**inputs(family, photo()))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_an_unknown_class_is_refused(family):
    """A subclass may compute its logits anywhere."""
    model = build(family)
    for block in find_vit(model)[1].blocks:
        attention = core(part(block, ATTENTIONS))
        own = type(attention)
        attention.__class__ = type(
            "MyAttention", (own,), {"forward": lambda self, *a, own=own, **k: own.forward(self, *a, **k)}
        )
    with pytest.raises(ValueError, match=r"Pass proportional_attention=False, or load .*'MyAttention' adds no bias"):
        apply_algm(model)


def bare_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention as flash kernels compute it: without a mask."""
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


def without_positions(model):
    """Without what makes attention go by positions: relative biases and rotary angles."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "relative_position_bias_table" in name or "inv_freq" in name:
            tensor.data.zero_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_proportional_attention_is_attention_to_the_copies(family):
    """A merged token of size s counts as s equal tokens: the same as unmerging before attention."""
    model = without_positions(build(family))
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    calls = []
    second = find_vit(model)[1].blocks[1]
    handle = second.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    _, copies, expected, *_ = model(**inputs(family, photo()), output_hidden_states=True).hidden_states
    model.algm.proportional_attention = False
    unweighted = model(**inputs(family, photo()), output_hidden_states=True).hidden_states[2]
    handle.remove()
    assert model.algm.token_map.sizes.max() > 1
    remove_algm(model)
    ((x, *args), kwargs), _ = calls
    assert torch.equal(x, copies)
    found = second(x, *args, **kwargs)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected, atol=1e-4, rtol=1e-4)
    assert (unweighted - expected).abs().max() > 1e-2


@pytest.mark.skipif(not huggingface.takes_mask("ViT"), reason="this release's ViT takes no mask")
@torch.no_grad()
def test_a_mask_means_the_same_to_every_attention():
    visible = torch.ones(2, 31, dtype=torch.int64)
    visible[:, 9:14] = 0
    found = []
    for family in ["ViT", "ViT, eager"]:
        model = apply_algm(build(family), **SETTINGS)
        found.append(model(photo(), attention_mask=visible).last_hidden_state)
        assert not torch.allclose(found[-1], model(photo()).last_hidden_state, atol=1e-2)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


WHOLE = {
    "CLIPModel": ("CLIP", "CLIPConfig"),
    "SiglipModel": ("SigLIP", "SiglipConfig"),
    "Siglip2Model": ("SigLIP 2", "Siglip2Config"),
}
WHOLE = {name: kind for name, kind in WHOLE.items() if hasattr(transformers, name)}


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_the_text_tower_stays_as_it_is(name):
    family, config = WHOLE[name][0], getattr(transformers, WHOLE[name][1])
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = FAMILIES[family].config().to_dict()
    torch.manual_seed(0)
    model = enliven(getattr(transformers, name)(config(text_config={**text, "vocab_size": 99}, vision_config=vision)))
    arguments = {**inputs(family, photo()), "input_ids": torch.arange(1, 13).view(2, 6)}
    plain = model(**arguments)
    apply_algm(model, **SETTINGS)
    merged = model(**arguments)
    assert torch.equal(merged.text_embeds, plain.text_embeds)
    assert not torch.allclose(merged.image_embeds, plain.image_embeds, atol=1e-3)
    assert len(model.algm.tokens_per_layer) == 5
    assert "_algm_original" not in vars(type(model.text_model.encoder.layers[0]))
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model(**arguments).image_embeds, plain.image_embeds)


@pytest.mark.skipif("SigLIP 2" not in FAMILIES, reason="this release has no SigLIP 2")
@torch.no_grad()
def test_siglip2_wants_one_grid_in_the_batch():
    model = apply_algm(build("SigLIP 2"), **SETTINGS)
    arguments = huggingface.patches(photo())
    for shapes in ([[6, 5], [5, 6]], [[5, 5], [5, 5]]):
        with pytest.raises(ValueError, match=r"spatial_shapes=\[\[.*for 30 patches.*one grid .* no padding"):
            model(**{**arguments, "spatial_shapes": torch.tensor(shapes)})
    assert model(**arguments).last_hidden_state.shape == (2, 30, 64)
    assert "grid 6x5 + 0 prefix" in repr(model.algm)


@torch.no_grad()
def test_vit_mae_must_neither_drop_nor_shuffle():
    model = apply_algm(build("ViT-MAE"), **SETTINGS)
    with pytest.raises(ValueError, match=r"mask_ratio = 0 and pass noise=torch.arange\(30\).expand\(2, -1\)"):
        model(photo(), interpolate_pos_encoding=True)
    model.config.mask_ratio = 0.5
    with pytest.raises(ValueError, match="drops and shuffles"):
        model(**inputs("ViT-MAE", photo()))


@torch.no_grad()
def test_vit_mae_for_pretraining():
    model = build(
        "ViT-MAE",
        "ViTMAEForPreTraining",
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
    )
    image, noise = photo(grid=(6, 6)), torch.arange(36).expand(2, -1)
    expected = model(image, noise=noise).logits
    apply_algm(model, **SETTINGS)
    assert model(image, noise=noise).logits.shape == expected.shape
    assert len(model.algm.tokens_per_layer) == 5


def on_meta(make):
    """A model without memory for its weights, or with it, if its class reads numbers from tensors when it is built."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError:
        return make()


REFUSED = {
    "SwinModel": ("SwinConfig", "windows"),
    "Swinv2Model": ("Swinv2Config", "windows"),
    "DonutSwinModel": ("DonutSwinConfig", "windows"),
    "HieraModel": ("HieraConfig", "windows"),
    "VitDetModel": ("VitDetConfig", "windows"),
    "SamVisionModel": ("SamVisionConfig", "grid"),
    "SegGptForImageSegmentation": ("SegGptConfig", "grid"),
    "SegformerModel": ("SegformerConfig", "pooled"),
    "PvtModel": ("PvtConfig", "pooled"),
    "PvtV2Model": ("PvtV2Config", "pooled"),
    "YolosModel": ("YolosConfig", "detection tokens"),
    "VideoMAEModel": ("VideoMAEConfig", "VideoMAELayer.*does not know"),
    "CLIPTextModel": ("CLIPTextConfig", "no patch projection"),
    "ConvNextModel": ("ConvNextConfig", "no sequence of transformer blocks"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(transformers, name)])
def test_refused_by_name(name):
    config, reason = REFUSED[name]
    model = on_meta(lambda: getattr(transformers, name)(getattr(transformers, config)()))
    types = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=rf"{name} cannot be patched: .*{reason}"):
        apply_algm(model)
    assert [type(module) for module in model.modules()] == types


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family, reentrant):
    model, image = build(family), photo()
    if reentrant and getattr(model, "shared_position_bias", None) is not None:
        pytest.skip("its layers share the graph of one bias, which reentrant checkpointing goes back through once")
    apply_algm(model, **SETTINGS)

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        model(**inputs(family, image.requires_grad_())).last_hidden_state.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    expected = gradients()
    assert len(expected) > 50
    assert model.algm.tokens_per_layer[-1] < 31
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_auto_classes():
    model = apply_algm(AutoModel.from_config(FAMILIES["DINOv2"].config()).eval(), **SETTINGS)
    assert model(photo()).last_hidden_state.shape == (2, 31, 64)
    backbone = apply_algm(AutoBackbone.from_config(FAMILIES["DINOv2"].config(out_indices=[1, 4])).eval(), **SETTINGS)
    assert [x.shape for x in backbone(photo()).feature_maps] == [(2, 64, 6, 5)] * 2


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


@torch.no_grad()
@pytest.mark.parametrize("module", ["beit.modeling_beit.Beit", "data2vec.modeling_data2vec_vision.Data2VecVision"])
@pytest.mark.parametrize("grid", [(6, 6), (6, 5), (5, 6), (4, 4)])
def test_biases_between_groups_are_those_of_all_tokens_paired(module, grid):
    """Also where they are looked up for the groups alone: on the square grid of the table."""
    path, _, name = f"transformers.models.{module}".rpartition(".")
    config = getattr(transformers, f"{name}Config")(image_size=96, patch_size=16, num_attention_heads=4, hidden_size=64)
    cls = getattr(importlib.import_module(path), f"{name}RelativePositionBias")
    window = {"window_size": (6, 6)} if "window_size" in inspect.signature(cls).parameters else {}
    bias = cls(config, **window)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    length = 1 + grid[0] * grid[1]
    labels = torch.stack([torch.arange(length) // 2, (torch.arange(length) - 1).clamp(min=0).div(2).long()])
    labels[1, -1] = labels[0].max()
    token_map = TokenMap(labels, torch.ones(2, int(labels.max()) + 1))
    found = relative_bias(bias, grid, False, torch.zeros(2, 3, 64), LayerTokens(token_map, None, 1))
    torch.testing.assert_close(found, token_map.pair(bias(grid, dim_size=length)))


def test_a_block_that_lacks_a_part_is_refused_by_it():
    model = build("ViT")
    block = find_vit(model)[1].blocks[1]
    block.norm_of_mine = block.layernorm_after
    del block.layernorm_after
    expected = r"ViTLayer, ALGM expects a part called layernorm_after or norm2 or layer_norm2, and found .*norm_of_mine"
    with pytest.raises(ValueError, match=expected):
        apply_algm(model)


def test_a_block_with_an_unknown_argument_is_refused_by_it(monkeypatch):
    model = build("ViT")
    own = type(find_vit(model)[1].blocks[0])

    def forward(self, hidden_states, compass=None):
        """A forward of a release that is to come."""

    forward.__module__, forward.__qualname__ = own.forward.__module__, own.forward.__qualname__
    monkeypatch.setattr(own, "forward", forward)
    with pytest.raises(ValueError, match=r"ViTLayer, ALGM does not know what its forward does with .* 'compass'"):
        apply_algm(model)


def test_attention_below_several_decorators(monkeypatch):
    """Releases of transformers put one around another."""
    attention = core(part(find_vit(build("ViT"))[1].blocks[0], ATTENTIONS))
    found = implementation(attention)
    for _ in range(2):
        monkeypatch.setattr(type(attention), "forward", decorated(type(attention).forward))
        assert implementation(attention) == found


def decorated(forward):
    @functools.wraps(forward)
    def run(*args, **kwargs):
        return forward(*args, **kwargs)

    return run
