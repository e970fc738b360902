"""timm's ViTs with rotary angles, relative biases and patch embeddings of their own."""

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support import models
from tests.support.contract import SETTINGS
from tests.support.counting import record_unmerges
from tests.support.models import OTHERS, build, photo
from tests.support.training import assert_same, gradients


@pytest.fixture(params=OTHERS)
def family(request):
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize("options", [{}, {"stop_early": True}, {"norm": True}, {"intermediates_only": True}])
def test_forward_intermediates(family, output_fmt, options):
    model, image = build(family), photo(family)
    apply_algm(model, **SETTINGS)
    found = model.forward_intermediates(image, [1, 3], output_fmt=output_fmt, **options)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < model.algm.token_map.labels.shape[1]
    models.read_every_block(model)
    expected = model.forward_intermediates(image, [1, 3], output_fmt=output_fmt, **options)
    if not options.get("intermediates_only"):
        (final, found), (expected_final, expected) = found, expected
        torch.testing.assert_close(final, expected_final)
    for level, wanted in zip(found, expected, strict=True):
        assert level.shape[-2:] == models.GRID if output_fmt == "NCHW" else level.shape[1] == 30
        torch.testing.assert_close(level, wanted)  # the means of restored grids are merged tokens to rounding


@torch.no_grad()
def test_only_what_is_read_is_unmerged(family, monkeypatch):
    model, image = apply_algm(build(family), **SETTINGS), photo(family)
    unmerged = record_unmerges(monkeypatch)
    model.forward_features(image)
    assert len(unmerged) == 1
    assert model(image).shape == (2, 3)
    assert len(unmerged) == 2


def test_gradient_checkpointing_gives_the_same_gradients(family):
    model, image = build(family).train(), photo(family)
    apply_algm(model, **SETTINGS)

    def seeded_gradients():
        torch.manual_seed(0)  # relative positions by MLP have dropout
        return gradients(model, model.forward_features(image).square().mean())

    expected = seeded_gradients()
    assert set(dict(model.blocks.named_parameters(prefix="blocks"))) <= set(expected)
    model.set_grad_checkpointing()
    assert_same(seeded_gradients(), expected, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith(("BEiT", "relative"))])
def test_proportional_attention_adds_to_the_bias(name):
    """Under a constant bias, a merged key weighs as much as its copies."""
    model, image = build(name), photo(name, batch=1)
    for parameter_name, parameter in model.named_parameters():
        if "bias_table" in parameter_name or "rel_pos.mlp" in parameter_name:
            parameter.zero_()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    model.forward_features(image)
    remove_algm(model)
    outputs, patched = [], outputs
    model.blocks[1](patched[0])
    torch.testing.assert_close(outputs[0], patched[1], atol=1e-5, rtol=1e-5)
