"""The six points of the adapters' contract, for every kind of model that the library patches."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from algm_patch.patching.find_vit import find_vit
from tests.support.cases import CASES
from tests.support.contract import PRECISIONS, SETTINGS, UNMERGED, permute_in_place_of_clap, tokens_of, trace
from tests.support.models import blocks_of

NOTHING: dict[str, Any] = {"tau": 1.05, "gbm_layers": []}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=PRECISIONS)
def prepared(request, case):
    """A model and an image, in one precision, without gradients."""
    dtype, context = PRECISIONS[request.param]
    with torch.no_grad(), context():
        yield case.build().to(dtype), case.image().to(dtype), case


def test_1_the_halves_are_the_block(prepared):
    model, image, case = prepared
    _, vit = find_vit(model)
    calls = []
    hooks = [block.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True) for block in vit.blocks]
    case.tokens(model, image)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(vit.blocks)
    for (block, args, kwargs, output), adapter in zip(calls, vit.adapters, strict=True):
        x, *others = args or (kwargs.pop("hidden_states"),)
        found = adapter.pack(
            block, adapter.mlp_half(block, adapter.attention_half(block, x, UNMERGED, *others, **kwargs))
        )
        assert type(found) is type(output)
        assert torch.equal(tokens_of(found), tokens_of(output))
        assert not torch.equal(tokens_of(found), x)


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_2_a_permutation_of_the_tokens_changes_nothing(case, precision, proportional, monkeypatch):
    """Only rounding changes, as sums run in another order; how much it may change is measured against float32."""
    model, image = case.build(), case.image()
    dtype, context = PRECISIONS[precision]
    with torch.no_grad():
        inputs = case.position_inputs(case.tokens(model, image).shape[1])
        exact = case.tokens(model, image, **inputs)
        with context():
            model, image = model.to(dtype), image.to(dtype)
            inputs = {name: value.to(dtype) for name, value in inputs.items()}
            expected = case.tokens(model, image, **inputs).float()
            permute_in_place_of_clap(monkeypatch)
            apply_algm(model, clap_layer=2, gbm_layers=[], proportional_attention=proportional)
            found = case.tokens(model, image, **inputs).float()
    if precision == "float32":
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - expected).square().mean() <= 2 * (expected - exact).square().mean() + 1e-8
    assert not torch.equal(model.algm.token_map.labels[0], torch.arange(exact.shape[1]))


def test_3_taps_do_not_change_the_output(prepared):
    model, image, case = prepared
    apply_algm(model, **SETTINGS)
    last = case.tokens(model, image)
    assert model.algm.tokens_per_layer[0] < last.shape[1]
    assert model.algm.tokens_per_layer[2] < model.algm.tokens_per_layer[1]
    shapes = []
    for block in blocks_of(model):  # hooks read the blocks, and could have changed what they read
        block.register_forward_hook(lambda _, inputs, output: shapes.append(tokens_of(output).shape))
    assert torch.equal(case.tokens(model, image), last)
    assert set(shapes) == {last.shape}


def test_4_remove_leaves_no_trace(prepared):
    model, image, case = prepared
    expected = case.tokens(model, image)  # before the trace: some models keep what they compute
    before, keys = trace(model), list(model.state_dict())
    apply_algm(model, clap_layer=2, gbm_layers=[2])
    once = case.tokens(model, image)
    assert list(model.state_dict()) == keys
    apply_algm(model, clap_layer=1, gbm_layers=[3, 4], tau=0.2)
    newer = case.tokens(model, image)
    assert not torch.equal(newer, once)
    assert remove_algm(model) is model
    assert trace(model) == before
    assert torch.equal(case.tokens(model, image), expected)
    apply_algm(model, clap_layer=1, gbm_layers=[3, 4], tau=0.2)
    assert torch.equal(case.tokens(model, image), newer)


def test_5_merging_nothing_is_the_original(prepared):
    model, image, case = prepared
    expected = case.tokens(model, image)
    apply_algm(model, **NOTHING)
    assert torch.equal(case.tokens(model, image), expected)
    model.algm.tau, model.algm.gbm_layers, model.algm.gbm_tau = 1.0, [3], 1.0  # planned, and nothing passes
    assert torch.equal(case.tokens(model, image), expected)
    assert set(model.algm.tokens_per_layer) == {expected.shape[1]}


@torch.no_grad()
def test_6_merged_keys_weigh_more(case):
    """A mask that leaves their weights out passes every other point: a permutation has none."""
    model, image = case.build(), case.image()
    apply_algm(model, **SETTINGS)
    weighed = case.tokens(model, image)
    model.algm.proportional_attention = False
    assert not torch.equal(case.tokens(model, image), weighed)
