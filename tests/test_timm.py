"""timm's own interface on patched models."""

from itertools import product

import models
import pytest
import timm
import torch
from models import FAMILIES, build, photo, read_every_block
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer

from algm_patch import apply_algm, remove_algm
from algm_patch.functional import TokenMap

FLAGS = ["norm", "stop_early", "return_prefix_tokens"]
SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def block_outputs(model, image):
    """Every block's output on the full grid, by running the patched blocks one at a time."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
    outputs = []
    for block in model.blocks:
        x = block(x)
        outputs.append(x)
    return outputs


@torch.no_grad()
def test_blocks_run_by_a_loop_of_ones_own_give_the_full_grid(family):
    model, image = build(family), photo(family)
    expected = block_outputs(model, image)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    assert [x.shape for x in outputs] == [x.shape for x in expected]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < expected[0].shape[1]
    torch.testing.assert_close(model.norm(outputs[-1]), model.forward_features(image))
    assert "every block gave back the full grid" not in repr(model.algm)


@torch.no_grad()
@pytest.mark.parametrize("indices", [None, 1, 2, [0], [0, 2, 4], [-1, -2], [1, 1]])
def test_forward_intermediates(family, indices):
    model, image = build(family), photo(family)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    taken = sorted(set(feature_take_indices(len(model.blocks), indices)[0]))
    prefix = model.num_prefix_tokens
    flags = [dict(zip(FLAGS, values, strict=True)) for values in product([False, True], repeat=len(FLAGS))]
    for options, output_fmt in product(flags, ["NCHW", "NLC"]):
        final, intermediates = model.forward_intermediates(image, indices, output_fmt=output_fmt, **options)
        for found, i in zip(intermediates, taken, strict=True):
            full = model.norm(outputs[i]) if options["norm"] else outputs[i]
            if options["return_prefix_tokens"] and prefix:
                found, prefix_tokens = found
                torch.testing.assert_close(prefix_tokens, full[:, :prefix])
            patches = full[:, prefix:]
            if output_fmt == "NCHW":
                patches = patches.mT.unflatten(2, models.GRID)
            torch.testing.assert_close(found, patches)
        last = max(taken) if options["stop_early"] else -1
        torch.testing.assert_close(final, model.norm(outputs[last]))


@torch.no_grad()
def test_get_intermediate_layers_and_the_head(family):
    model, image = build(family), photo(family)
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    layers = model.get_intermediate_layers(image, n=[1, 3], reshape=True, norm=True)
    for found, i in zip(layers, (1, 3), strict=True):
        patches = model.norm(outputs[i])[:, model.num_prefix_tokens :]
        torch.testing.assert_close(found, patches.mT.unflatten(2, models.GRID))
    torch.testing.assert_close(model(image), model.forward_head(model.norm(outputs[-1])))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"feature_cls": "hook", "out_indices": (0, 2)}])
def test_features_only(options):
    model = build("ViT", features_only=True, **options).eval()
    plain = model(photo())
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.5)
    features = model(photo())
    assert [x.shape for x in features] == [x.shape for x in plain]
    assert model.algm.tokens_per_layer[-1] < 31
    remove_algm(model)
    for found, expected in zip(model(photo()), plain, strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_only_what_is_read_is_unmerged(monkeypatch):
    model = apply_algm(build("ViT"), **SETTINGS)
    unmerged = []
    monkeypatch.setattr(TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: unmerged.append(1) or real(self, x))
    model.forward_features(photo())
    assert len(unmerged) == 1
    unmerged.clear()
    model.forward_intermediates(photo(), indices=[1, 2])
    assert len(unmerged) == 3
    for options in ({"stop_early": True}, {"intermediates_only": True}):
        unmerged.clear()
        model.forward_intermediates(photo(), indices=[1], **options)
        assert len(unmerged) == 1


class Neck(VisionTransformer):
    """Someone's segmenter: reads blocks and writes between them, in a method that no library knows."""

    def forward_features(self, x):
        x = self._pos_embed(self.patch_embed(x))
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % 2:
                x = x + torch.linspace(0, 1, x.shape[1])[:, None]  # a position-dependent prompt: copies now differ
            levels.append(x[:, 1:].mT.unflatten(2, (6, 5)))
        return self.norm(x), levels


@torch.no_grad()
def test_a_subclass_that_reads_between_the_blocks_sees_full_grids():
    model = Neck(img_size=(96, 80), embed_dim=64, depth=4, num_heads=4, num_classes=0).eval()
    expected, levels = model.forward_features(photo())
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    found, patched_levels = model.forward_features(photo())
    assert [x.shape for x in patched_levels] == [x.shape for x in levels]
    assert found.shape == expected.shape
    assert "every block gave back the full grid" in repr(model.algm)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model.forward_features(photo())[0], expected)


@torch.no_grad()
def test_what_was_written_between_the_blocks_is_averaged_over_each_group():
    model, image = build("ViT"), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, proportional_attention=False)
    x = model.blocks[0](model._pos_embed(model.patch_embed(image)))
    prompt = torch.randn_like(x)
    found = model.blocks[1](x + prompt)
    token_map = model.algm.token_map
    remove_algm(model)
    torch.testing.assert_close(found, token_map.unmerge(model.blocks[1](token_map.merge(x + prompt))))
    assert token_map.sizes.max() == 4


@torch.no_grad()
def test_a_hook_that_changes_a_blocks_output_is_heard():
    model, image = build("ViT"), photo()
    apply_algm(model, **SETTINGS)
    plain = model.forward_features(image)
    model.blocks[1].register_forward_hook(lambda *_: None)
    assert torch.equal(model.forward_features(image), plain)
    model.blocks[1].register_forward_hook(lambda _, inputs, output: 2 * output)
    doubled = model.forward_features(image)
    assert not torch.allclose(doubled, plain)
    read_every_block(model)
    torch.testing.assert_close(model.forward_features(image), doubled)


@torch.no_grad()
def test_grids_of_any_size_one_after_the_other():
    model = apply_algm(build("DINOv2"), **SETTINGS)
    for grid in [(6, 5), (7, 7), (2, 2), (1, 9), (1, 1), (16, 3)]:
        image = photo("DINOv2", grid=grid)
        assert model.forward_features(image).shape == (2, 1 + grid[0] * grid[1], 64)
        features = model.forward_intermediates(image, intermediates_only=True)
        assert all(x.shape == (2, 64, *grid) for x in features)


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("where", ["everywhere", "in one pixel"])
def test_hostile_images(value, where):
    """What is not finite stays in its image, whatever its neighbour in the batch."""
    model, image = build("ViT"), photo()
    image[0, :, 40 if where == "in one pixel" else slice(None), 50] = value
    if where == "everywhere":
        image[0] = value
    expected = model.forward_features(image)
    apply_algm(model, gbm_layers=[3])
    found = model.forward_features(image)
    assert found.shape == expected.shape
    assert found[1].isfinite().all()
    assert found[0].isfinite().all() == expected[0].isfinite().all()


@torch.no_grad()
def test_padded_images():
    model = build("ViT", dynamic_img_size=True, dynamic_img_pad=True)
    apply_algm(model, **SETTINGS)
    assert model.forward_features(torch.randn(1, 3, 90, 70)).shape == (1, 1 + 6 * 5, 64)


@torch.no_grad()
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 5), (8, 8)])
def test_windows(window):
    model = apply_algm(build("ViT"), gbm_layers=[], tau=-1.0, window=window)
    model.forward_features(photo())
    windows = (6 // window[0]) * (5 // window[1])
    assert model.algm.tokens_per_layer[-1] == 31 - windows * (window[0] * window[1] - 1)


@torch.no_grad()
def test_attention_masks_reach_merged_layers():
    """Keys that are masked for every query stay without influence when tokens around them merge."""
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


def test_causal_attention_is_refused():
    model = apply_algm(build("ViT"), tau=0.5)
    x = model._pos_embed(model.patch_embed(photo()))
    with pytest.raises(ValueError, match=r"is_causal=True: .*remove_algm"):
        model.blocks[0](x, is_causal=True)


def test_patch_dropout_is_refused_while_it_drops():
    model = apply_algm(build("ViT", patch_drop_rate=0.5))
    model(photo())
    model.train()
    with pytest.raises(
        ValueError, match=r"block 1 was given \[2, 16, 64\] where ALGM expected \[B, 31, D\].*patch dropout"
    ):
        model(photo())


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
    """A merged token of size s counts as s equal tokens: the same as unmerging before attention."""
    model, image = build("ViT"), photo(batch=1)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    outputs = block_outputs(model, image)
    again = model.blocks[2]
    full = outputs[1]  # copies of the merged tokens, on the full grid
    remove_algm(model)
    torch.testing.assert_close(again(full), outputs[2], atol=1e-5, rtol=1e-5)
    assert not torch.equal(full[:, 1:], full[:, 1:2].expand_as(full[:, 1:]))


class Prompted(VisionTransformer):
    """Prompt tuning: learned tokens after the class token, for the first block and all that follow."""

    def forward_features(self, x):
        x = self._pos_embed(self.patch_embed(x))
        prompts = torch.linspace(-1, 1, 3 * x.shape[2]).view(1, 3, -1).expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], prompts, x[:, 1:]], 1)
        return self.norm(self.blocks(x))


@torch.no_grad()
def test_prompts_before_the_patches_are_prefix():
    model, image = Prompted(img_size=(96, 80), embed_dim=64, depth=4, num_heads=4, num_classes=0).eval(), photo()
    expected = model.forward_features(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    assert model.forward_features(image).shape == expected.shape
    assert "grid 6x5 + 4 prefix" in repr(model.algm)
    assert torch.equal(model.algm.token_map.labels[:, :4], torch.arange(4).expand(2, 4))
    assert (model.algm.token_map.sizes[:, :4] == 1).all()
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 34


def in_turns(model, images, between=lambda x: x):
    """Two images, block by block."""
    tokens = [model._pos_embed(model.patch_embed(image)) for image in images]
    for block in model.blocks:
        tokens = [between(block(x)) for x in tokens]
    return [model.norm(x) for x in tokens]


@pytest.mark.parametrize("gradients", [False, True])
def test_two_images_may_take_turns(gradients):
    model, images = build("ViT"), [photo(seed=1), photo(seed=2)]
    apply_algm(model, **SETTINGS)
    with torch.set_grad_enabled(gradients):
        expected = [model.forward_features(image) for image in images]
        assert not torch.allclose(*expected)
        for found, wanted in zip(in_turns(model, images), expected, strict=True):
            torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_two_images_in_turns_are_refused_where_they_cannot_be_told_apart():
    model, images = build("ViT"), [photo(seed=1), photo(seed=2)]
    apply_algm(model, **SETTINGS)
    with pytest.raises(RuntimeError, match=r"block 2 .* ran already. If several passes take turns"):
        in_turns(model, images, between=lambda x: x + 1)


@torch.no_grad()
def test_two_grids_in_turns():
    model, images = build("ViT", dynamic_img_size=True), [photo(grid=(8, 4)), photo(grid=(4, 4))]
    apply_algm(model, **SETTINGS)
    with pytest.raises(ValueError, match=r"block 1 was given \[2, 33, 64\] where ALGM expected \[B, 17, D\]"):
        in_turns(model, images)
    assert model.forward_features(images[0]).shape == (2, 33, 64)


@torch.no_grad()
def test_a_block_run_again_on_its_input_does_the_same_again():
    model, image = build("ViT"), photo()
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    x = model._pos_embed(model.patch_embed(image))
    for block, expected in zip(model.blocks, outputs, strict=True):
        assert torch.equal(block(x), expected)
        following = block(x)
        assert torch.equal(following, expected)
        x = following


class Reading(torch.nn.Sequential):
    """Runs the blocks and keeps what they leave."""

    def forward(self, x):
        self.levels = []
        for block in self:
            x = block(x)
            self.levels.append(x)
        return x


@torch.no_grad()
def test_a_sequence_that_reads_between_its_blocks_sees_full_grids():
    model = build("ViT")
    model.blocks = Reading(*model.blocks)
    apply_algm(model, **SETTINGS)
    model.forward_features(photo())
    assert {level.shape for level in model.blocks.levels} == {(2, 31, 64)}
    assert model.algm.tokens_per_layer[-1] < 31


@torch.no_grad()
def test_unmerged_layers_keep_their_fast_path(family):
    """No mask reaches attention before anything is merged."""
    model, image = build(family), photo(family)
    apply_algm(model, clap_layer=3, gbm_layers=[], tau=0.5, batch="min")
    masks = {layer: [] for layer in range(5)}
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


@torch.no_grad()
def test_forward_intermediates_as_a_dictionary():
    model, image = build("DINOv2, 4 registers"), photo("DINOv2, 4 registers")
    apply_algm(model, **SETTINGS)
    options = {"indices": [1, 4], "return_prefix_tokens": True}
    final, pairs = model.forward_intermediates(image, **options)
    found = model.forward_intermediates(image, **options, output_dict=True)
    assert torch.equal(found["image_features"], final)
    for i, (patches, prefix) in enumerate(pairs):
        assert torch.equal(found["image_intermediates"][i], patches)
        assert torch.equal(found["image_intermediates_prefix"][i], prefix)


def test_backward_hooks_on_a_block_see_full_grids():
    model = apply_algm(build("ViT"), **SETTINGS)
    shapes = []
    for block in model.blocks:
        block.register_full_backward_hook(lambda _, inputs, outputs: shapes.append((inputs[0].shape, outputs[0].shape)))
    model.forward_features(photo().requires_grad_()).sum().backward()
    assert set(shapes) == {(torch.Size((2, 31, 64)), torch.Size((2, 31, 64)))}
    assert len(shapes) == 5


class LateQueries(VisionTransformer):
    """Queries join before the prefix in the middle of the blocks, as EoMT's do."""

    def forward_features(self, x):
        x = self._pos_embed(self.patch_embed(x))
        queries = torch.linspace(-1, 1, 3 * x.shape[2]).view(1, 3, -1).expand(len(x), -1, -1)
        for i, block in enumerate(self.blocks):
            if i == 2:
                x = torch.cat([queries, x], 1)
            x = block(x)
        return self.norm(x)


@torch.no_grad()
def test_queries_that_join_late_are_prefix():
    model, image = LateQueries(img_size=(96, 80), embed_dim=64, depth=4, num_heads=4, num_classes=0).eval(), photo()
    expected = model.forward_features(image)
    apply_algm(model, clap_layer=1, gbm_layers=[4], tau=0.5)
    assert model.forward_features(image).shape == expected.shape == (2, 34, 64)
    first, second, third, fourth = model.algm.tokens_per_layer
    assert first == second < 31
    assert third == second + 3 > fourth
    assert torch.equal(model.algm.token_map.labels[:, :4], torch.arange(4).expand(2, 4))
    assert (model.algm.token_map.sizes[:, :4] == 1).all()
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model.forward_features(image), expected)
    assert model.algm.tokens_per_layer == [31, 31, 34, 34]
