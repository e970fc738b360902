"""The setting ``restore``: full grids with what each original token lost at the merges."""

from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm
from tests.support.batches import unlike
from tests.support.loops import run_loop
from tests.support.models import build, photo, read_every_block

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2, 3], "tau": 0.5}


def without_norm():
    model = build("ViT")
    model.norm = nn.Identity()
    return model


def holding(model):
    """Return the blocks (from 0) whose losses the last pass holds."""
    return [layer for layer, block in model.algm.last_pass.blocks.items() if block.lost is not None]


@torch.no_grad()
@pytest.mark.parametrize("batch", ["image", "min"])
def test_tokens_of_a_group_differ_by_what_they_lost_and_others_are_what_they_were(batch):
    model = apply_algm(without_norm(), **SETTINGS, batch=batch, restore=False)
    images = unlike(photo()) if batch == "image" else photo(batch=3)
    copies = model.forward_features(images)
    model.algm.restore = True
    found, token_map = model.forward_features(images), model.algm.token_map
    alone = token_map.unmerge(token_map.sizes) == 1
    assert 0 < alone.sum() < alone.numel()
    assert torch.equal(found[alone], copies[alone])
    assert ((found - copies).abs().amax(2) > 0.01)[~alone].all()
    torch.testing.assert_close(token_map.merge(found), token_map.merge(copies))


def test_every_way_to_run_the_blocks_gives_the_same():
    """Merged tokens are handed on, or taken from grids that something reads; with gradients, and recomputed."""
    image, actions = photo(), ["keep"] * 5
    model = apply_algm(without_norm(), **SETTINGS)
    with torch.no_grad():
        expected = model.forward_features(image)
        every = run_loop(model, image, actions)
        again = every[2]
        for block in model.blocks[3:]:
            again = block(again)
        read_every_block(model)
        hooked = model.forward_features(image)
    model.set_grad_checkpointing()
    trained = model.forward_features(image)
    for found in (every[-1], again, hooked, trained):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for kept, other in zip(every[:5], run_loop(model, image, ["norm"] * 5)[:5], strict=True):
        torch.testing.assert_close(kept, other, atol=1e-5, rtol=1e-5)
    trained.sum().backward()


def test_losses_are_held_no_longer_than_something_asks_for_them():
    """Kept tokens keep their pass: it must not keep as much again for every merge."""
    model, held = apply_algm(build("ViT"), **SETTINGS), []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda *_: held.append(holding(model)))
    with torch.no_grad():
        model.forward_features(photo())
        assert holding(model) == []
        assert held == [[0], [1], [2], [3], [4]]
        x = model._pos_embed(model.patch_embed(photo()))
        for block in model.blocks[:3]:
            x = block(x)
        assert holding(model) == [2]
    model.forward_features(photo())
    assert holding(model) == [0, 1, 2, 3, 4]  # a backward pass may ask


@torch.no_grad()
def test_nothing_is_restored_of_tokens_that_are_no_means():
    model = apply_algm(build("ViT"), **SETTINGS, reduce="pick")
    found = []
    for model.algm.restore in (True, False):
        torch.manual_seed(0)
        found.append(model.forward_features(photo()))
    assert torch.equal(*found)


def test_it_is_printed_where_it_is_off():
    model = apply_algm(build("ViT"), **SETTINGS)
    assert "restore" not in str(model.algm)
    model.algm.restore = False
    assert ", restore False" in str(model.algm)
    with pytest.raises(TypeError, match=r"restore is True, False, or None .*; got 1"):
        model.algm.restore = 1
