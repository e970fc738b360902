"""Code that keeps a forward of a patched module, and removes the patch under it."""

from functools import partial
from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support import models_huggingface
from tests.support.contract import SETTINGS, trace
from tests.support.models import build, photo


def keep_on_the_instance(module):
    """Set a forward on a module that calls the bound method of now, as accelerate's hooks do."""
    inner = module.forward
    module.forward = lambda *args, **kwargs: inner(*args, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("kept", [[""], ["", "blocks"], ["", "blocks", "patch_embed.proj"]], ids=str)
def test_a_removed_patch_leaves_a_model_that_runs(kept):
    model, image = build("ViT"), photo(batch=1)
    expected = model(image)
    apply_algm(model, **SETTINGS)
    merged = model(image)
    for path in kept:
        for module in model.blocks if path == "blocks" else [model.get_submodule(path)]:
            keep_on_the_instance(module)
    assert not torch.equal(merged, expected)
    remove_algm(model)
    assert torch.equal(model(image), expected)


@torch.no_grad()
def test_a_method_in_the_place_of_the_forward():
    model, image = build("ViT"), photo(batch=1)
    expected = model.forward_features(image)
    apply_algm(model, **SETTINGS)
    model.forward = model.forward_features
    assert not torch.equal(model(image), expected)
    remove_algm(model)
    assert torch.equal(model(image), expected)
    del model.forward
    assert trace(model) == trace(build("ViT"))


@torch.no_grad()
def test_a_model_of_transformers():
    model, image = models_huggingface.build("ViT"), photo(batch=1)
    expected = model(image).last_hidden_state
    apply_algm(model, **SETTINGS)
    keep_on_the_instance(model)
    assert not torch.equal(model(image).last_hidden_state, expected)
    remove_algm(model)
    assert torch.equal(model(image).last_hidden_state, expected)


def by_a_partial(module):
    """Set a forward that calls the bound method with some of its arguments given."""
    module.forward = partial(module.forward)


def by_the_class(module):
    """Set a forward that calls the function of the class of now."""
    module.forward = partial(type(module).forward, module)


@torch.no_grad()
@pytest.mark.parametrize("keep", [by_a_partial, by_the_class])
def test_methods_kept_of_each_block(keep):
    model, image = build("ViT"), photo(batch=1)
    expected = model(image)
    apply_algm(model, **SETTINGS)
    for block in model.blocks:
        keep(block)
    assert not torch.equal(model(image), expected)
    remove_algm(model)
    assert torch.equal(model(image), expected)


@torch.no_grad()
def test_a_hook_that_runs_what_it_kept():
    model, image, outputs = build("ViT"), photo(batch=1), []
    expected = model(image)
    kept = apply_algm(model, **SETTINGS).forward
    model.register_forward_pre_hook(lambda *_: outputs.append(kept(image)))
    assert not torch.equal(model(image), expected)
    remove_algm(model)
    assert torch.equal(model(image), expected)
    assert torch.equal(outputs[1], expected)


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
def test_taken_away_under_a_compiled_module(ran):
    torch.compiler.reset()
    model, image = build("ViT"), photo(batch=1)
    expected = model(image)
    compiled: Any = torch.compile(apply_algm(model, **SETTINGS), backend="eager")
    if ran:
        assert not torch.equal(compiled(image), expected)
    remove_algm(compiled)
    assert not hasattr(compiled, "algm")
    assert torch.equal(compiled(image), expected)
    assert [type(part) for part in model.modules()] == [type(part) for part in build("ViT").modules()]
