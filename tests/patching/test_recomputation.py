"""Recomputation in the backward pass replays the merges of the forward pass; training under autocast."""

import copy
from typing import Any

import pytest
import torch

from algm_patch import apply_algm
from tests.support.models import build, photo
from tests.support.threads import run_in_threads
from tests.support.training import assert_same, checkpointed, gradients, gradients_with_and_without_recomputation

SETTINGS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}


@pytest.mark.parametrize(
    "how", ["blocks", "blocks, reentrant", "whole model", "halves of the model", "all intermediates"]
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recomputation_replays_each_forwards_own_merges(how, mode):
    """Two forward passes precede one backward pass, and a third comes between."""
    model = getattr(build("ViT", drop_path_rate=0.3, proj_drop_rate=0.1), mode)()
    apply_algm(model, **SETTINGS)
    first, second = photo(seed=1), photo(seed=2)

    def loss(forward):
        torch.manual_seed(0)
        total = forward(first).square().mean() + forward(second).pow(3).mean()
        with torch.no_grad():
            model.forward_features(photo(seed=3, batch=1))
        return total

    found, expected = gradients_with_and_without_recomputation(model, how, loss)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if how == "halves of the model" else {"atol": 0, "rtol": 0}
    assert_same(found, expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["blocks", "whole model"])
def test_gradients_under_autocast(how, dtype):
    model, image = build("ViT").train(), photo()
    apply_algm(model, **SETTINGS)
    with torch.autocast("cpu", dtype):
        expected = gradients(model, model.forward_features(image).float().square().mean())
        found = gradients(model, checkpointed(model, how)(image).float().square().mean())
    assert_same(found, expected, atol=0, rtol=0)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_gradients_under_autocast_are_near_those_in_full_precision(batch, dtype):
    """The loss is scaled, as float16 needs it. A step that overflows is left out and changes nothing."""
    model, image = apply_algm(build("ViT").train(), **SETTINGS, batch=batch), photo()
    expected = gradients(model, model.forward_features(image).square().mean())
    counts, weights = model.algm.tokens_per_layer, copy.deepcopy(model.state_dict())
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step(overflow=1.0):
        with torch.autocast("cpu", dtype):
            loss = model.forward_features(image).float().square().mean() * overflow
        model.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    step(overflow=torch.inf)
    assert scaler.get_scale() == 2.0**11
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    step()
    assert scaler.get_scale() == 2.0**11
    assert model.algm.tokens_per_layer == counts
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad
        assert torch.nn.functional.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > 0.99, name
        assert 0.97 < found.norm() / gradient.norm() < 1.03, name
    assert not torch.equal(model.cls_token, weights["cls_token"])


def test_a_backward_pass_in_another_thread_leaves_the_handle_its_forward():
    model = apply_algm(build("ViT").train(), **SETTINGS)
    output = checkpointed(model, "whole model")(photo())
    counts = model.algm.tokens_per_layer
    run_in_threads([output.sum().backward], times=1)
    assert model.algm.tokens_per_layer == counts
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


def test_recomputation_plans_nothing_anew(monkeypatch):
    model = apply_algm(build("ViT").train(), **SETTINGS)
    model.set_grad_checkpointing()
    output = model.forward_features(photo())
    for plan in ("plan_clap", "plan_gbm"):
        monkeypatch.setattr(
            f"algm_patch.patching.forward_pass.{plan}", lambda *_: pytest.fail("planned in the backward pass")
        )
    output.sum().backward()


def test_recomputation_from_a_moved_input_is_refused_not_guessed():
    model = apply_algm(build("ViT").train(), **SETTINGS)
    model.set_grad_checkpointing()
    pack = torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x)
    with pack:
        output = model.forward_features(photo())
    with pytest.raises(RuntimeError, match="recomputed in the backward pass from a copy"):
        output.sum().backward()
