"""Several ViTs in one model: which are patched, what they merge, and how the patch goes away."""

import copy
import pickle
from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.contract import trace
from tests.support.models import photo
from tests.support.several import Pair

SETTINGS: dict[str, Any] = {"gbm_layers": [2], "tau": 0.5}


def pair():
    torch.manual_seed(0)
    return Pair()


@torch.no_grad()
@pytest.mark.parametrize("trunks", ["all", ["fine", "coarse"], ("coarse", "fine", "coarse.blocks"), "fine", ["coarse"]])
def test_each_merges_as_if_it_were_patched_alone(trunks):
    model, plain, image = apply_algm(pair(), trunks=trunks, **SETTINGS), pair(), photo()
    patched = [name for name in ("fine", "coarse") if trunks == "all" or name in trunks or trunks == name]
    for name in patched:
        apply_algm(plain.get_submodule(name), **SETTINGS)
    assert torch.equal(model(image), plain(image))
    for name in ("fine", "coarse"):
        trunk, alone = model.get_submodule(name), plain.get_submodule(name)
        assert hasattr(trunk, "algm") == (name in patched)
        if name in patched:
            assert trunk.algm.tokens_per_layer == alone.algm.tokens_per_layer
            assert trunk.algm.tokens_per_layer[0] < 31
    assert [type(module) for module in model.modules()][1:] == [type(module) for module in plain.modules()][1:]


def test_several_are_named_with_their_sizes_and_left_as_they_are():
    model = pair()
    before = trace(model)
    with pytest.raises(
        ValueError,
        match=r"Pair holds 2 ViTs: 'fine' \(VisionTransformer, 4 blocks of width 64\), 'coarse' \(VisionTransformer, 2 "
        r"blocks of width 64\)\. Name those to patch, as in trunks=\['fine'\], or trunks='all'",
    ):
        apply_algm(model)
    assert trace(model) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"trunks": "vit"}, ValueError, r"trunks='vit': Pair has no such module\. Pair holds 2 ViTs: 'fine'"),
        ({"trunks": ""}, ValueError, r"trunks='' holds 2 ViTs\. Pair holds 2 ViTs: 'fine'"),
        ({"trunks": "fine.head"}, ValueError, r"trunks='fine\.head' holds no ViTs\. Pair holds"),
        ({"trunks": []}, ValueError, r"trunks names no ViT\. Pair holds"),
        ({"trunks": [0]}, TypeError, r"trunks are paths of modules, .* got 0"),
        ({"trunks": 0}, TypeError, r"trunks are paths of modules, .* got 0"),
        ({"trunks": "all", "gbm_layers": [3]}, ValueError, r"layer 3, but coarse \(VisionTransformer\) has 2 blocks"),
        ({"trunks": "all", "unmerge_at": "after_head"}, ValueError, r"'after_head' takes one ViT.* fine, coarse are 2"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_half_patched(arguments, error, message):
    model, image = pair(), photo()
    before = trace(model)
    with pytest.raises(error, match=message):
        apply_algm(model, **{**SETTINGS, **arguments})
    assert trace(model) == before
    apply_algm(model, trunks="all", **SETTINGS)
    with torch.no_grad():
        expected = model(image)
        with pytest.raises(error, match=message):
            apply_algm(model, **{**SETTINGS, **arguments})
        assert torch.equal(model(image), expected)


def test_parts_in_common_are_refused():
    model = pair()
    model.coarse.patch_embed = model.fine.patch_embed
    before = trace(model)
    with pytest.raises(ValueError, match=r"fine and coarse have one patch embedding\. Name one"):
        apply_algm(model, trunks="all", **SETTINGS)
    assert trace(model) == before


def test_a_class_changed_since_leaves_all_patched():
    model = apply_algm(pair(), trunks="all", **SETTINGS)
    block = model.coarse.blocks[1]
    patched, image = type(block), photo()
    expected = model(image)
    block.__class__ = type("Sharded", (patched,), {})
    for change in (remove_algm, lambda model: apply_algm(model, **SETTINGS)):
        with pytest.raises(ValueError, match="class of Sharded was changed"):
            change(model)
    block.__class__ = patched
    assert torch.equal(model(image), expected)
    assert list(model.algm) == ["fine", "coarse"]


@torch.no_grad()
def test_applied_again_to_others_it_keeps_the_first():
    model = apply_algm(pair(), trunks="fine", **SETTINGS)
    handle = model.algm
    assert handle is model.fine.algm
    apply_algm(model, trunks="coarse", gbm_layers=[], tau=0.9)
    assert dict(model.algm) == {"fine": handle, "coarse": model.coarse.algm}
    assert (handle.tau, model.coarse.algm.tau) == (0.5, 0.9)
    apply_algm(model, gbm_layers=[1], tau=0.7)  # those that are patched
    assert model.algm["fine"] is handle
    assert (handle.tau, model.coarse.algm.tau) == (0.7, 0.7)
    model(photo())
    assert all(each.tokens_per_layer[0] < 31 for each in model.algm.values())


def test_applied_again_without_names_it_is_for_those_that_are_patched():
    model = apply_algm(pair(), trunks="fine", **SETTINGS)
    apply_algm(model, gbm_layers=[], tau=0.9)
    assert model.algm is model.fine.algm
    assert model.algm.tau == 0.9
    assert not hasattr(model.coarse, "algm")


@torch.no_grad()
@pytest.mark.parametrize("order", [["fine", "coarse"], ["coarse", "fine"], [""]])
def test_removed_one_by_one_or_together_there_is_no_trace(order):
    model, image = pair(), photo()
    before, expected = trace(model), model(image)
    apply_algm(model, trunks="all", **SETTINGS)
    assert not torch.equal(model(image), expected)
    for path in order:
        remove_algm(model.get_submodule(path))
        if path == order[0] and path:
            assert model.algm is model.get_submodule(order[1]).algm
            model(image)
            assert model.algm.tokens_per_layer[0] < 31
    assert trace(model) == before
    assert torch.equal(model(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_patched_alike_and_apart(twin_of):
    model, image = apply_algm(pair(), trunks="all", **SETTINGS), photo()
    expected, text = model(image), repr(pair())
    twin = twin_of(model)
    assert repr(twin) == text
    assert list(twin.state_dict()) == list(pair().state_dict())
    assert torch.equal(twin(image), expected)
    assert dict(twin.algm) == {"fine": twin.fine.algm, "coarse": twin.coarse.algm}
    twin.algm.tau = 2.0
    assert (model.algm.tau, twin.fine.algm.tau) == (0.5, 2.0)
    remove_algm(twin)
    assert trace(twin) == trace(pair())
    assert torch.equal(model(image), expected)
