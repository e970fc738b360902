"""Training on batches whose images merge by themselves."""

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from tests.support import cases_hub
from tests.support.batches import ATTENTION_KINDS, CLOSE, assert_as_alone, patched, prepare, unlike
from tests.support.models import build, photo
from tests.support.training import (
    assert_same,
    gradients,
    gradients_with_and_without_recomputation,
    without_chance,
)


@pytest.mark.parametrize("mode", [without_chance, nn.Module.eval], ids=["train", "eval"])
@pytest.mark.parametrize("name", ATTENTION_KINDS)
def test_gradients_are_the_sum_of_those_of_each_image(name, mode):
    prepared = prepare(name)
    model, images = prepared.model.double(), prepared.images[[0, 1, 3]].double().requires_grad_()
    mode(model)
    with torch.no_grad():
        patched(model, prepared.final_tokens, images, batch="image")
    weights = torch.randn_like(prepared.final_tokens(images))
    assert len(set((model.algm.token_map.sizes > 0).sum(1).tolist())) > 1

    def gradient(part):
        """Return the gradients of every parameter and every image."""
        found: dict[str, Any] = gradients(model, (prepared.final_tokens(images[part]) * weights[part]).sum())
        found["images"], images.grad = images.grad, None
        return found

    together = gradient(slice(None))
    alone = [gradient(slice(i, i + 1)) for i in range(len(images))]
    total = {key: sum(one[key] for one in alone) for key in alone[0]}
    assert_same(together, total, **CLOSE)  # some models compute some parts in float32
    assert together["images"].flatten(1).any(1).all()


def outcomes(final_tokens, images, times):
    """Return [times, B]: for each run and image, the number of the first run with the same result."""
    results = torch.stack([final_tokens(images).flatten(1) for _ in range(times)])
    same = (results[:, None] - results).abs().amax(-1) < 1e-5
    return same.int().argmax(1)


@torch.no_grad()
def test_stochastic_depth_drops_each_image_by_itself():
    """One block drops each of its two branches or not: four outcomes for an image, sixteen for two images."""
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
    """Above a rate of 0.1 it skips some images of a batch, but never the only one."""
    model, images = cases_hub.dino(depth=2, drop_path_rate=rate), unlike(photo("DINOv2"))  # all of it in block 2

    def final_tokens(images):
        return model.forward_features(images)["x_prenorm"]

    patched(model, final_tokens, images, gbm_layers=[], batch="image")
    model.train()
    found = outcomes(final_tokens, images, 60)
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

    found, expected = gradients_with_and_without_recomputation(model, how, loss)
    in_another_order = how in ("halves of the model", "blocks, reentrant")  # are gradients summed
    assert_same(found, expected, **({"atol": 1e-6, "rtol": 1e-5} if in_another_order else {"atol": 0, "rtol": 0}))
