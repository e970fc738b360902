"""Blocks know the tokens of their own model from those of another."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm
from tests.support import cases_segmenter
from tests.support.facts import facts_of
from tests.support.models import build, photo
from tests.support.threads import run_in_threads

THRESHOLDS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "tau": 0.5}
COUNTS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "merge_to": 0.6}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def pair(**changes):
    """Return two models that merge differently."""
    return (
        apply_algm(build("ViT", depth=3), **THRESHOLDS),
        apply_algm(
            build("ViT", depth=3), **{**THRESHOLDS, "clap_layer": 2, "gbm_layers": [3], "window": (3, 5), **changes}
        ),
    )


def embedded(model, image):
    return model._pos_embed(model.patch_embed(image))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("ran_before", [False, True])
def test_tokens_of_another_model_are_not_taken_for_ones_own(layer, ran_before):
    teacher, student = pair()
    if ran_before:
        student(photo(seed=5))
        before = facts_of(student)
    x = embedded(teacher, photo())
    for block in teacher.blocks[: layer + 1]:
        x = block(x)
    with pytest.raises(RuntimeError, match=r"cannot trace .*Another patched model took or left them\. Give each model"):
        student.blocks[layer](x)
    if ran_before:
        assert facts_of(student) == before
    student(photo())  # and the next pass is whole
    assert len(student.algm.tokens_per_layer) == 3


@torch.no_grad()
def test_tokens_of_another_model_after_ones_own_patch_embedding_are_fresh():
    """The student goes on from the teacher's first block."""
    teacher, student = pair(clap_layer=None, gbm_layers=[3])
    plain = copy.deepcopy(student)
    embedded(student, photo())
    x = teacher.blocks[0](embedded(teacher, photo()))
    embedded(student, photo())
    embedded(plain, photo())
    expected = found = x.clone()
    for block, other in zip(student.blocks[1:], plain.blocks[1:], strict=True):
        x, expected = block(x), other(expected)
    assert torch.equal(x, expected)
    assert not torch.equal(x, found)
    assert student.algm.token_map.sizes.shape[1] < 31
    assert teacher.algm.tokens_per_layer[0] < 31
    assert torch.equal(student.algm.token_map.labels, plain.algm.token_map.labels)


def in_turns(models, images):
    """Run one pass of each model, block by block in turns."""
    tokens = [embedded(model, image) for model, image in zip(models, images, strict=True)]
    for blocks in zip(*(model.blocks for model in models), strict=True):
        tokens = [block(x) for block, x in zip(blocks, tokens, strict=True)]
    return tokens


@torch.no_grad()
def test_two_models_in_turns_and_in_threads():
    models, images = pair(), (photo(seed=1), photo(seed=2))
    expected = in_turns([models[0]], images[:1]) + in_turns([models[1]], images[1:])

    def check():
        for found, wanted in zip(in_turns(models, images), expected, strict=True):
            torch.testing.assert_close(found, wanted)  # threads have gradients: full grids between blocks
        return [model.algm.token_map.labels.tolist() for model in models]

    once = check()
    assert run_in_threads([check, check], times=5) == [[once] * 5] * 2


def test_recomputation_across_two_models():
    """Both models run block by block in turns, and one backward pass goes through both."""
    models = [model.train() for model in pair()]

    def loss(run):
        for model in models:
            model.zero_grad()
        tokens = [embedded(model, photo(seed=i)) for i, model in enumerate(models)]
        total: Any = 0.0
        for blocks in zip(*(model.blocks for model in models), strict=True):
            tokens = [run(block, x) for block, x in zip(blocks, tokens, strict=True)]
            total = total + sum((x * torch.linspace(-1, 1, 64)).sum() for x in tokens)
        total.backward()
        return [parameter.grad.clone() for model in models for parameter in model.blocks.parameters()]

    expected = loss(lambda block, x: block(x))
    found = loss(lambda block, x: checkpoint(block, x, use_reentrant=False))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_recomputation_of_tokens_that_both_models_take():
    teacher, student = pair()

    def loss(run):
        teacher.zero_grad()
        student.zero_grad()
        embedded(student, photo())
        x = embedded(teacher, photo()).detach().requires_grad_()
        one, other = x, x
        for block, its in zip(teacher.blocks, student.blocks, strict=True):
            one, other = run(block, one), run(its, other)
        (one.pow(2).sum() + other.pow(3).sum()).backward()
        return [p.grad.clone() for model in (teacher, student) for p in model.blocks.parameters()]

    expected = loss(lambda block, x: block(x))
    for one, other in zip(loss(lambda block, x: checkpoint(block, x, use_reentrant=False)), expected, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_a_decoder_takes_the_tokens_of_its_own_model_alone():
    first, second = (cases_segmenter.build("mask", depth=2).requires_grad_(False) for _ in range(2))
    for model in (first, second):
        apply_algm(model, **COUNTS, unmerge_at="after_head")
    image = photo()
    x = first.encoder(image, return_features=True)
    with pytest.raises(RuntimeError, match="decoder was given tokens that ALGM cannot trace"):
        second.decoder(x[:, 1:], image.shape[2:])
    second.encoder(image, return_features=True)
    with pytest.raises(RuntimeError, match="decoder was given tokens that ALGM cannot trace"):
        second.decoder(x[:, 1:], image.shape[2:])
    first.decoder(x[:, 1:], image.shape[2:])
