"""torch.hub's DINOv2 and open_clip."""

import pytest
import torch
from cases_hub import DINOS, clip, dino
from models import photo
from test_contract import permute
from test_training import assert_same, gradients
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.attention import attend
from algm_patch.adapters.hub import CustomResidualAttentionBlock, DinoBlock, ResidualAttentionBlock
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.functional import TokenMap
from algm_patch.patching.find_vit import find_vit

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
GROUPS = [[0, 1, 1, 2, 3, 3, 3], [0, 1, 2, 2, 2, 2, 3], [0, 1, 2, 3, 3, 1, 0], [0, 1, 2, 3, 0, 0, 0]]


def tokens_of_groups(groups=GROUPS):
    """Four images of 7 tokens in 4 groups of different sizes."""
    labels = torch.tensor(groups)
    token_map = TokenMap(labels, torch.zeros(4, 4).scatter_add(1, labels, torch.ones(4, 7)))
    return LayerTokens(token_map, token_map.key_bias, 1)


@pytest.fixture
def unmerged(monkeypatch):
    """What is unmerged, call by call."""
    lengths = []
    monkeypatch.setattr(
        TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: lengths.append(x.shape[1]) or real(self, x)
    )
    return lengths


# -- DINOv2


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
def test_dino_features(model, unmerged):
    image = photo("DINOv2")
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
def test_dino_intermediate_layers(model, unmerged, n):
    image = photo("DINOv2")
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
    apply_algm(model, gbm_layers=[], tau=2.0)
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
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
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

    class Listening(type(model.blocks[0].attn)):
        def forward(self, x, attn_bias=None):
            lengths.append(x.shape[1])
            return super().forward(x, attn_bias)

    model.blocks[3].attn.__class__ = Listening
    with pytest.raises(ValueError, match=r"proportional_attention=True .* block 4"):
        apply_algm(model)
    apply_algm(model, **SETTINGS, proportional_attention=False, batch="min")
    model(photo("DINOv2"))
    assert lengths == [model.algm.tokens_per_layer[2]]


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_dino_stochastic_depth_is_the_blocks_own(rate):
    model, image = dino(drop_path_rate=rate, drop_path_uniform=True).train(), photo("DINOv2", batch=5)
    evaluated = model.eval()(image)
    model.train()
    torch.manual_seed(1)
    expected = model(image)
    assert not torch.allclose(expected, evaluated)
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=1.0, gbm_tau=1.0)
    torch.manual_seed(1)
    found = model(image)
    assert set(model.algm.tokens_per_layer) == {31}
    assert torch.equal(found, expected)


@torch.no_grad()
def test_dino_stochastic_depth_gives_each_image_its_own_sizes():
    block, x = dino(drop_path_rate=0.5, drop_path_uniform=True).blocks[0], torch.randn(4, 4, 64)
    tokens = tokens_of_groups()
    full = DinoBlock.attention_half(block, x, tokens)
    plain = DinoBlock.attention_half(block, x, LayerTokens(tokens.token_map, None, 1))
    assert not torch.allclose(full[0], plain[0])
    torch.manual_seed(3)
    kept = torch.randperm(4)[:2]
    assert kept.tolist() != [0, 1]
    torch.manual_seed(3)
    found = DinoBlock.attention_half(block.train(), x, tokens)
    expected = x.clone()
    expected[kept] += 2 * (full - x)[kept]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_dino_training_and_recomputation(rate):
    model = apply_algm(dino(drop_path_rate=rate).train(), **SETTINGS)
    images = [photo("DINOv2", seed=1), photo("DINOv2", seed=2)]

    def run(image):
        return model.forward_features(image)["x_norm_patchtokens"]

    def found(run):
        torch.manual_seed(0)
        outputs = [run(image) for image in images]
        return gradients(model, outputs[0].square().mean() + outputs[1].pow(3).mean())

    expected = found(run)
    assert model.algm.tokens_per_layer[-1] < 31
    assert len(expected) == len(list(model.parameters())) - 1  # the mask token is not used
    assert_same(found(lambda image: checkpoint(run, image, use_reentrant=False)), expected, atol=0, rtol=0)


# -- open_clip


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["own blocks", "custom blocks"])
@pytest.mark.parametrize("indices", [None, 1, 2, [0], [0, 2, 4], [-1, -2]])
def test_clip_intermediates(options, indices, unmerged):
    model, image = clip(**options), photo()
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
    """As the model means them: open_clip's own blocks add a bool mask, its custom blocks leave out what is True."""
    model, image, mask = clip(**options), photo(), MASKS[kind]()
    x = model._embeds(image)
    expected = model.transformer(x, attn_mask=mask)
    assert not torch.allclose(expected, model.transformer(x), atol=1e-3)
    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", permute)
    apply_algm(model, clap_layer=2, gbm_layers=[], proportional_attention=proportional)
    found = model.transformer(model._embeds(image), attn_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("adapter", [ResidualAttentionBlock, CustomResidualAttentionBlock])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("masked", ["not", "alike", "by image and head"])
def test_clip_proportional_attention_is_attention_to_the_copies(adapter, dtype, masked):
    """With a mask that is alike for all members of a group, so that each copy may see what its token sees."""
    block = clip(qk_norm=adapter is CustomResidualAttentionBlock).transformer.resblocks[0]
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


def test_clip_what_is_refused():
    model = apply_algm(clip(), clap_layer=1, gbm_layers=[])
    x = model._embeds(photo())
    with pytest.raises(ValueError, match="k_x, v_x: attention to tokens other than"):
        model.transformer.resblocks[0](x, x, x)
    model = clip()
    model.transformer.resblocks[3].attn.batch_first = False
    with pytest.raises(ValueError, match=r"resblocks\[3\] cannot be patched: .*batch_first"):
        apply_algm(model)


def test_clip_patch_dropout_is_refused_while_it_drops():
    model = apply_algm(clip(patch_dropout=0.5), **SETTINGS)
    model(photo())
    with pytest.raises(ValueError, match=r"block 1 was given \[2, 16, 64\] .*patch dropout"):
        model.train()(photo())


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "own", "method"),
    [({}, None, "attention"), ({}, "attn", "forward"), ({"qk_norm": True}, "attn", "forward")],
)
def test_clip_attention_of_another_kind(options, own, method):
    """A method of its own, in the block or in its attention."""
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
    assert find_vit(model)[0] is model.visual
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

    def found(run):
        outputs = [run(image) for image in images]
        return gradients(model, outputs[0].square().mean() + outputs[1].pow(3).mean())

    expected = found(model)
    assert model.algm.tokens_per_layer[-1] < 31
    assert len(expected) == len(list(model.parameters()))
    if options:  # open_clip's own checkpointing hands these blocks arguments that they do not take
        assert_same(found(lambda image: checkpoint(model, image, use_reentrant=False)), expected, atol=0, rtol=0)
    else:
        model.set_grad_checkpointing()
        assert_same(found(model), expected, atol=0, rtol=0)


def test_clip_runs_alike_with_and_without_gradients():
    """Without, torch takes another path through unmerged attention."""
    model, image = apply_algm(clip(), **SETTINGS), photo()
    with torch.no_grad():
        expected = model(image)
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)
