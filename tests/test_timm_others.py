"""What is special to timm's ViTs with rotary angles, relative biases and patches of their own."""

import models
import pytest
import torch
from models import OTHERS, build, photo
from timm.data.naflex_transforms import patchify_image

from algm_patch import apply_algm, remove_algm
from algm_patch.functional import TokenMap

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}


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
        assert torch.equal(final, expected_final)
    for level, wanted in zip(found, expected, strict=True):
        assert level.shape[-2:] == models.GRID if output_fmt == "NCHW" else level.shape[1] == 30
        assert torch.equal(level, wanted)


@torch.no_grad()
def test_only_what_is_read_is_unmerged(family, monkeypatch):
    model, image = apply_algm(build(family), **SETTINGS), photo(family)
    unmerged = []
    monkeypatch.setattr(TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: unmerged.append(1) or real(self, x))
    model.forward_features(image)
    assert len(unmerged) == 1
    assert model(image).shape == (2, 3)
    assert len(unmerged) == 2


def test_gradient_checkpointing_gives_the_same_gradients(family):
    model, image = build(family).train(), photo(family)
    apply_algm(model, **SETTINGS)

    def gradients():
        torch.manual_seed(0)  # relative positions by MLP have dropout
        model.zero_grad()
        model.forward_features(image).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert set(dict(model.blocks.named_parameters(prefix="blocks"))) <= set(expected)
    model.set_grad_checkpointing()
    found = gradients()
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith(("BEiT", "relative"))])
def test_proportional_attention_adds_to_the_bias(name):
    """Where the bias is constant, a merged key weighs as much as its copies do before they merge."""
    model, image = build(name), photo(name, batch=1)
    for parameter_name, parameter in model.named_parameters():
        if "bias_table" in parameter_name or "rel_pos.mlp" in parameter_name:
            parameter.zero_()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    model.forward_features(image)
    remove_algm(model)
    outputs, patched = [], outputs
    model.blocks[1](patched[0])
    torch.testing.assert_close(outputs[0], patched[1], atol=1e-5, rtol=1e-5)


def naflex_input(grids, length):
    """Patches of images of these grids, padded to one length."""
    batch = {"patches": [], "patch_coord": [], "patch_valid": []}
    for image in (photo(batch=1, grid=grid)[0] for grid in grids):
        patches, coordinates, valid = patchify_image(image, (16, 16))
        missing = length - len(patches)
        batch["patches"].append(torch.nn.functional.pad(patches, (0, 0, 0, missing)))
        batch["patch_coord"].append(torch.nn.functional.pad(coordinates, (0, 0, 0, missing)))
        batch["patch_valid"].append(torch.nn.functional.pad(valid, (0, missing)))
    return {name: torch.stack(values) for name, values in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith("NaFlex")])
def test_naflex_batches_of_one_grid(name):
    model = build(name)
    inputs = naflex_input([(6, 5), (6, 5)], 30)
    expected = model(inputs)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=2.0, gbm_tau=2.0)
    assert torch.equal(model(inputs), expected)
    model.algm.tau, model.algm.gbm_tau = 0.5, "adaptive"
    found = model(inputs)
    assert found.shape == expected.shape
    assert model.algm._past().grid == (6, 5)
    assert model.algm.tokens_per_layer[-1] < 30
    torch.testing.assert_close(found, model(photo(grid=(6, 5), batch=1).expand(2, -1, -1, -1)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("grids", "length"), [([(6, 5), (5, 6)], 30), ([(6, 5), (4, 5)], 30), ([(6, 5)], 33)])
def test_naflex_batches_of_several_grids_or_with_padding_are_refused(grids, length):
    model = apply_algm(build("NaFlex"), **SETTINGS)
    with pytest.raises(ValueError, match="patches of this batch are not one whole grid"):
        model(naflex_input(grids, length))
