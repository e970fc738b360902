"""Compiled models are patched, changed, trained, copied and unpatched."""

import copy

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.compiling import FAMILIES, IN_ONE_GRAPH, SETTINGS, WHOLE, counted, images, tokens


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "merge_to": 0.6}], ids=["thresholds", "counts"])
def test_blocks_compiled_by_themselves(settings):
    model, x = FAMILIES["timm ViT"]().eval(), images(3, 2)
    expected = tokens(apply_algm(copy.deepcopy(model), **settings), x)
    for block in apply_algm(model, **settings).blocks:
        block.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(tokens(model, x), expected)


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "merge_to": 0.6}], ids=["thresholds", "counts"])
@pytest.mark.parametrize("in_place", [False, True])
def test_compile_first_then_patch_change_and_remove(in_place, settings):
    model, x = FAMILIES["timm ViT"]().eval(), images(7)
    plain = tokens(model, x)
    reference = copy.deepcopy(model)
    if in_place:
        model.compile(backend="eager", **WHOLE)
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager", **WHOLE)
    assert torch.equal(tokens(compiled, x), plain)
    apply_algm(compiled, **settings)
    expected = tokens(apply_algm(reference, **settings), x)
    torch.testing.assert_close(tokens(compiled, x), expected)
    assert not torch.allclose(expected, plain)
    model.algm.gbm_layers = reference.algm.gbm_layers = [2]
    torch.testing.assert_close(tokens(compiled, x), tokens(reference, x))
    remove_algm(compiled)
    assert torch.equal(tokens(compiled, x), plain)


def test_gradients_of_a_batch_of_unlike_images():
    model = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS)
    compiled = torch.compile(model, backend="aot_eager", **WHOLE)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        tokens(run, images(3, 3)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 40
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "checkpointing"),
    [
        pytest.param({}, False, marks=IN_ONE_GRAPH, id="default"),
        pytest.param({}, True, marks=IN_ONE_GRAPH, id="default, checkpointing"),
        pytest.param(WHOLE, False, id="whole"),
    ],
)
def test_gradients_in_training(asked, checkpointing):
    model = FAMILIES["timm ViT"]().train()
    model.set_grad_checkpointing(checkpointing)
    apply_algm(model, **SETTINGS)
    counter, options = counted("aot_eager", **asked)
    compiled = torch.compile(model, **options)
    for seed in (2, 3, 4):  # in which both images have blank rows
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            tokens(run, images(seed, 2)).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        assert len(gradients[0]) > 40
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert model.algm.tokens_per_layer[-1] < model.algm.token_map.labels.shape[1]
    assert counter.frame_count > 0


@torch.no_grad()
def test_after_a_compiled_run_the_model_is_copied_and_runs_as_ever():
    model, x = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS), images(3)
    expected = tokens(model, x)
    tokens(torch.compile(model, backend="eager", **WHOLE), x)
    assert "tokens after each layer" in repr(model.algm)
    assert torch.equal(tokens(copy.deepcopy(model), x), expected)
    assert torch.equal(tokens(model, x), expected)
