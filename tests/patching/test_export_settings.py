"""torch.export with other settings, grids and decoders; and by threshold, where values decide sizes."""

from __future__ import annotations

import pytest
import timm
import torch

from algm_patch import apply_algm
from algm_patch.core.compiling import ONE_GRAPH
from tests.support import cases_segmenter, models
from tests.support.batches import CLOSE
from tests.support.cases import CASES
from tests.support.exporting import (
    BY_THRESHOLD,
    FIXED,
    MODES,
    Call,
    assert_equal_to_eager,
    build,
    export,
    five_images,
    read_from_values,
    symbols,
)
from tests.support.models import photo


@pytest.mark.parametrize(
    "settings",
    [
        {"merge_to": [21, 0.5]},
        {"proportional_attention": False},
        {"compare": "key"},
        {"place": "after_mlp"},
        {"window": (3, 2)},
        {"clap_layer": None, "gbm_layers": [1, 2]},
    ],
    ids=str,
)
def test_with_other_settings(settings):
    model, images = build("timm ViT"), five_images(photo())
    whole = model(images)
    apply_algm(model, **{**FIXED, **settings})
    assert not torch.equal(model(images), whole)
    assert_equal_to_eager(export(model, images).module(), model, images)


@pytest.mark.parametrize("grid", [(5, 8), (9, 4), (2, 2)], ids=str)
def test_any_grid(grid):
    images = five_images(photo(grid=grid))
    model = apply_algm(models.build("ViT", grid, depth=2).requires_grad_(False), **FIXED)
    assert_equal_to_eager(export(model, images).module(), model, images)


def test_half_precision():
    model, images = apply_algm(build("timm ViT").bfloat16(), **FIXED), five_images(photo()).bfloat16()
    assert_equal_to_eager(export(model, images).module(), model, images)


def test_blocks_in_between():
    model = Call(models.build("ViT", depth=2).requires_grad_(False), both_layers)
    apply_algm(model, **FIXED)
    images = five_images(photo())
    found = export(model, images).module()
    for count in (1, 3, 5):
        for one, other in zip(found(images[:count]), model(images[:count]), strict=True):
            assert one.shape == (count, 64, *models.GRID)
            torch.testing.assert_close(one, other, **CLOSE)


def both_layers(model, images):
    return model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)


@pytest.mark.parametrize("unmerge", ["before_head", "after_head"])
def test_decoders(unmerge):
    model, images = cases_segmenter.build("mask", depth=2).requires_grad_(False), five_images(photo())
    apply_algm(model, **FIXED, unmerge_at=unmerge)
    assert_equal_to_eager(export(model, images).module(), model, images)


@MODES
def test_what_draws_anew_is_refused(strict):
    model, images = apply_algm(build("timm ViT"), **FIXED, reduce="pick"), five_images(photo())
    with pytest.raises(Exception, match="reduce='pick' draws anew at every forward pass"):
        export(model, images, strict)


def numbers_of_tokens(model, images):
    counts = set()
    for image in images.split(1):
        model(image)
        counts.add(model.algm.token_map.sizes.shape[1])
    return counts


@pytest.mark.parametrize(("name", "strict"), [("timm ViT", True), ("transformers BEiT, bias per layer", False)])
def test_thresholds(name, strict):
    model, images = apply_algm(build(name), **BY_THRESHOLD), five_images(CASES[name].image())
    program = export(model, images, strict)
    assert_equal_to_eager(program.module(), model, images)
    assert len(numbers_of_tokens(model, images)) > 1
    assert read_from_values(program) == {"aten.item.default"}
    assert len(symbols(program)) > 1


def test_thresholds_and_one_image():
    model, images = apply_algm(build("timm ViT"), **BY_THRESHOLD), five_images(photo())
    found = torch.export.export(model, (images[:1],)).module()
    for image in images.split(1):
        torch.testing.assert_close(found(image), model(image), **CLOSE)


FREE_SIZE = {"x": {2: 32 * torch.export.Dim("rows", min=2, max=10), 3: 32 * torch.export.Dim("columns", min=2, max=10)}}


def of_any_size():
    return timm.create_model("test_vit", img_size=96, dynamic_img_size=True, num_classes=0, global_pool="").eval()


@pytest.mark.skipif(not ONE_GRAPH, reason="torch 2.9 is the first to have merges in a graph")
@torch.no_grad()
def test_thresholds_and_images_of_any_size():
    """The sizes are of whole windows, as a graph has no branch for what is left over."""
    model = apply_algm(of_any_size(), clap_layer=1, gbm_layers=[3], tau=0.5, gbm_tau=0.5)
    found = torch.export.export(model, (torch.rand(1, 3, 96, 128),), dynamic_shapes=FREE_SIZE).module()
    for size in ((96, 128), (128, 96), (64, 64), (160, 224)):
        image = torch.rand(1, 3, *size)
        torch.testing.assert_close(found(image), model(image), **CLOSE)
        assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0]


@torch.no_grad()
def test_fixed_counts_and_images_of_any_size_are_refused():
    model = apply_algm(of_any_size(), gbm_layers=[3], merge_to=0.6)
    with pytest.raises(ValueError, match=r"dynamic_shapes lets the image's height or width vary.*merge_to"):
        torch.export.export(model, (torch.rand(1, 3, 96, 128),), dynamic_shapes=FREE_SIZE, strict=False)
