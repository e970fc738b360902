"""Attention in transformers' ViTs, patched: its maps, masks and biases, and the weight of merged tokens."""

import functools
import importlib
import inspect

import pytest
import torch
import transformers

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters import LayerTokens
from algm_patch.adapters.huggingface_attention import attention_of, implementation, inner_attention
from algm_patch.adapters.huggingface_beit import relative_bias
from algm_patch.adapters.huggingface_parts import returns_tuple
from algm_patch.functional import TokenMap
from tests.support import models_huggingface as huggingface
from tests.support.contract import SETTINGS
from tests.support.models import blocks_of
from tests.support.models_huggingface import FAMILIES, build, inputs, photo


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if "eager" in family])
def test_attention_maps_have_the_size_of_their_layer(family):
    model, image = build(family), photo()
    length = model(**inputs(family, image)).last_hidden_state.shape[1]
    apply_algm(model, **SETTINGS, batch="min")
    if returns_tuple(blocks_of(model)[0]):
        with pytest.raises(ValueError, match=r"output_attentions=True: .* beside its tokens.*remove_algm"):
            model(**inputs(family, image), output_attentions=True)
        return
    maps = model(**inputs(family, image), output_attentions=True).attentions
    assert [x.shape[-1] for x in maps] == [length, *model.algm.tokens_per_layer[:-1]]
    torch.testing.assert_close(maps[-1].sum(-1), torch.ones(maps[-1].shape[:-1]))
    model.algm.batch = "image"
    image = next(image for image in map(photo_of, range(9)) if leaves_different_numbers(model, inputs(family, image)))
    with pytest.raises(ValueError, match=r"output_attentions=True: .*model.algm.batch = 'min'"):
        model(**inputs(family, image), output_attentions=True)


def photo_of(seed):
    return photo(seed=seed)


def leaves_different_numbers(model, arguments):
    model(**arguments)
    return not model.algm.token_map.sizes.all()


def without_positions(model):
    """Remove from a model what makes attention go by positions: relative biases and rotary angles."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "relative_position_bias_table" in name or "inv_freq" in name:
            tensor.data.zero_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_proportional_attention_is_attention_to_the_copies(family):
    """A merged token of size s counts as s equal tokens, as if it were unmerged before attention."""
    model = without_positions(build(family))
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False)
    calls = []
    second = blocks_of(model)[1]
    handle = second.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    _, copies, expected, *_ = model(**inputs(family, photo()), output_hidden_states=True).hidden_states
    model.algm.proportional_attention = False
    unweighted = model(**inputs(family, photo()), output_hidden_states=True).hidden_states[2]
    handle.remove()
    assert model.algm.token_map.sizes.max() > 1
    remove_algm(model)
    ((x, *args), kwargs), _ = calls
    assert torch.equal(x, copies)
    found = second(x, *args, **kwargs)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected, atol=1e-4, rtol=1e-4)
    assert (unweighted - expected).abs().max() > 1e-2


@pytest.mark.skipif(not huggingface.takes_mask("ViT"), reason="this release's ViT takes no mask")
@torch.no_grad()
def test_a_mask_means_the_same_to_every_attention():
    visible = torch.ones(2, 31, dtype=torch.int64)
    visible[:, 9:14] = 0
    found = []
    for family in ["ViT", "ViT, eager"]:
        model = apply_algm(build(family), **SETTINGS)
        found.append(model(photo(), attention_mask=visible).last_hidden_state)
        assert not torch.allclose(found[-1], model(photo()).last_hidden_state, atol=1e-2)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("module", ["beit.modeling_beit.Beit", "data2vec.modeling_data2vec_vision.Data2VecVision"])
@pytest.mark.parametrize("grid", [(6, 6), (6, 5), (5, 6), (4, 4)])
def test_biases_between_groups_are_those_of_all_tokens_paired(module, grid):
    """This holds too on the square grid of the table, where biases are looked up for the groups alone."""
    path, _, name = f"transformers.models.{module}".rpartition(".")
    config = getattr(transformers, f"{name}Config")(image_size=96, patch_size=16, num_attention_heads=4, hidden_size=64)
    cls = getattr(importlib.import_module(path), f"{name}RelativePositionBias")
    window = {"window_size": (6, 6)} if "window_size" in inspect.signature(cls).parameters else {}
    bias = cls(config, **window)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    length = 1 + grid[0] * grid[1]
    labels = torch.stack([torch.arange(length) // 2, (torch.arange(length) - 1).clamp(min=0).div(2).long()])
    labels[1, -1] = labels[0].max()
    token_map = TokenMap(labels, torch.ones(2, int(labels.max()) + 1))
    found = relative_bias(bias, grid, False, torch.zeros(2, 3, 64), LayerTokens(token_map, None, 1))
    torch.testing.assert_close(found, token_map.pair(bias(grid, dim_size=length)))


def decorated(forward):
    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        return forward(*args, **kwargs)

    return wrapper


def test_attention_below_several_decorators(monkeypatch):
    """Some releases of transformers put one decorator around another."""
    attention = inner_attention(attention_of(blocks_of(build("ViT"))[0]))
    found = implementation(attention)
    for _ in range(2):
        monkeypatch.setattr(type(attention), "forward", decorated(type(attention).forward))
        assert implementation(attention) == found
