"""Images of every kind through timm's ViTs: grids, windows, padding, hostile values, and images in turns."""

import pytest
import torch

from algm_patch import apply_algm
from tests.support.contract import SETTINGS
from tests.support.models import block_outputs, build, photo


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
    """Values that are not finite spoil no other image of the batch."""
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


def test_patch_dropout_is_refused_while_it_drops():
    model = apply_algm(build("ViT", patch_drop_rate=0.5))
    model(photo())
    model.train()
    with pytest.raises(
        ValueError, match=r"block 1 was given \[2, 16, 64\] where ALGM expected \[B, 31, D\].*patch dropout"
    ):
        model(photo())


def in_turns(model, images, between=lambda x: x):
    """Run two images through the model, block by block. Return the final tokens of each."""
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
        torch.testing.assert_close(block(x), expected)  # to rounding: these grids were read, those were handed on
        following = block(x)
        torch.testing.assert_close(following, expected)
        x = following
