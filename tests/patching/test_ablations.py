"""The supplement's ablations keep the adapters' contract, and recompute, copy and run in turns."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm, remove_algm
from tests.support.ablations import COMBINATIONS, FAMILIES, SETTINGS, case_of, seeded_tokens
from tests.support.cases import CASES
from tests.support.contract import permute
from tests.support.models import build, photo, read_every_block
from tests.support.threads import run_in_threads
from tests.support.training import gradients


@pytest.fixture(params=FAMILIES)
def case(request):
    return case_of(request.param)


@pytest.fixture(params=COMBINATIONS, ids=lambda options: " ".join(map(str, options.values())))
def options(request):
    return request.param


def test_taps_do_not_change_the_output(case, options):
    model, image = case.build(), case.image()
    length = seeded_tokens(case, model, image).shape[1]
    apply_algm(model, **SETTINGS, **options)
    last = seeded_tokens(case, model, image)
    counts = model.algm.tokens_per_layer
    assert counts[0] == length > counts[1] == counts[2] > counts[3]
    assert [len(block.plans) for block in model.algm.last_pass.blocks.values()] == [0, 2, 0, 1, 0]
    read_every_block(model)
    assert torch.equal(seeded_tokens(case, model, image), last)


def test_merging_nothing_is_the_original_and_remove_leaves_no_trace(case, options):
    model, image = case.build(), case.image()
    before = [(name, type(part), list(part.__dict__)) for name, part in model.named_modules()]
    hooks = [len(part._forward_hooks) for part in model.modules()]
    expected = seeded_tokens(case, model, image)
    # planned, and nothing passes
    apply_algm(model, clap_layer=1, gbm_layers=[1, 3], tau=1.0, gbm_tau=1.0, **options)
    assert torch.equal(seeded_tokens(case, model, image), expected)
    model.algm.tau = model.algm.gbm_tau = 0.3
    assert not torch.equal(seeded_tokens(case, model, image), expected)
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
    remove_algm(model)
    assert [(name, type(part), list(part.__dict__)) for name, part in model.named_modules()] == before
    assert torch.equal(seeded_tokens(case, model, image), expected)


def test_a_permutation_of_the_tokens_changes_nothing(case, options, monkeypatch):
    model, image = case.build(), case.image()
    expected = seeded_tokens(case, model, image)
    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", permute)
    apply_algm(model, clap_layer=2, gbm_layers=[], **options)
    torch.testing.assert_close(seeded_tokens(case, model, image), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(model.algm.token_map.labels[0], torch.arange(expected.shape[1]))


@pytest.mark.parametrize("how", ["blocks", "whole model", "halves of the model"])
def test_recomputation_gives_the_same_gradients(options, how):
    """Every part has dropout, which must draw the numbers of the forward pass. Two forward passes come first."""
    model = build("ViT", drop_path_rate=0.3, proj_drop_rate=0.1).train()
    apply_algm(model, **SETTINGS, **options)

    def halves(image):
        x = model._pos_embed(model.patch_embed(image))
        for part in (model.blocks[:3], model.blocks[3:]):
            x = checkpoint(part, x, use_reentrant=False)
        return model.norm(x)

    def loss(forward):
        torch.manual_seed(0)
        total = forward(photo(seed=1)).square().mean() + forward(photo(seed=2)).pow(3).mean()
        with torch.no_grad():
            model.forward_features(photo(seed=3, batch=1))
        return total

    expected = gradients(model, loss(model.forward_features))
    model.set_grad_checkpointing(how == "blocks")
    forward = {
        "blocks": model.forward_features,
        "whole model": lambda image: checkpoint(model.forward_features, image, use_reentrant=False),
        "halves of the model": halves,
    }[how]
    found = gradients(model, loss(forward))
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_two_passes_in_turns_each_compare_their_own(options):
    model = build("ViT", dynamic_img_size=True)
    images = [photo(batch=1), photo(batch=2, grid=(8, 3), seed=1)]
    apply_algm(model, **SETTINGS, **options)
    read_every_block(model)

    def begun(image):
        torch.manual_seed(3)
        return model._pos_embed(model.patch_embed(image))

    with torch.no_grad():
        expected = []
        for image in images:
            x = begun(image)
            for block in model.blocks:
                x = block(x)
            expected.append(x)
        first = model.blocks[0](begun(images[0]))
        second = model.blocks[0](begun(images[1]))
        for block in model.blocks[1:]:
            first, second = block(first), block(second)
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


def test_threads_do_not_see_each_others_keys():
    model = apply_algm(build("ViT", dynamic_img_size=True), **SETTINGS, compare="key", place="after_mlp")
    images = [photo(batch=1), photo(batch=2, grid=(8, 3), seed=1)]

    def job(image):
        with torch.no_grad():
            output = model.forward_features(image)
        return output, model.algm.token_map.labels

    expected = [job(image) for image in images]
    for found, (output, labels) in zip(
        run_in_threads([lambda: job(images[0]), lambda: job(images[1])]), expected, strict=True
    ):
        for one, its_labels in found:
            torch.testing.assert_close(one, output)
            assert torch.equal(its_labels, labels)


def test_copies_keep_the_settings(options):
    model = apply_algm(build("ViT"), **SETTINGS, **options)
    twin = copy.deepcopy(model)
    for name, value in options.items():
        assert getattr(twin.algm, name) == value
    case = CASES["timm ViT"]
    assert torch.equal(seeded_tokens(case, twin, photo()), seeded_tokens(case, model, photo()))
    twin.algm.compare, twin.algm.reduce, twin.algm.place = "token", "mean", "before_mlp"
    assert not torch.equal(seeded_tokens(case, twin, photo()), seeded_tokens(case, model, photo()))


def test_the_handle_says_what_is_not_the_default():
    model = apply_algm(build("ViT"))
    assert "compare" not in repr(model.algm)
    model.algm.compare, model.algm.reduce, model.algm.place = "key", "pick", "after_mlp"
    assert "proportional attention on, compare key, reduce pick, place after_mlp" in repr(model.algm)
