"""Towers of transformers whose blocks, inputs or outputs are unlike those of its plain ViTs."""

from typing import Any

import pytest
import torch
import transformers

from algm_patch import apply_algm
from algm_patch.adapters.huggingface_parts import returns_tuple
from algm_patch.patching.find_vit import find_vit
from tests.support import models_huggingface as huggingface
from tests.support.contract import SETTINGS, UNMERGED, tokens_of
from tests.support.huggingface_towers import BARE
from tests.support.models import blocks_of
from tests.support.models_huggingface import EVERY, build, photo

CHANCE: dict[str, Any] = {
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.2,
    "attention_dropout": 0.2,
    "attn_drop_rate": 0.2,
    "drop_rate": 0.3,
    "drop_path_rate": 0.4,
}


def needs(family):
    """Skip a test where the release has no such family."""
    return pytest.mark.skipif(family not in EVERY, reason=f"this release has no {family}")


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in BARE if family in EVERY])
def test_the_halves_are_the_block_in_training_too(family):
    config = EVERY[family].config()
    model = build(family, **{name: rate for name, rate in CHANCE.items() if hasattr(config, name)}).train()
    calls = []
    for block in blocks_of(model):
        block.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
    huggingface.tokens(family)(model, photo())
    assert len(calls) == 5
    for (block, args, kwargs), adapter in zip(calls, find_vit(model)[1].adapters, strict=True):
        x, *others = args or (kwargs.pop("hidden_states"),)
        torch.manual_seed(1)
        expected = type(block).forward(block, x, *others, **kwargs)
        torch.manual_seed(1)
        half = adapter.attention_half(block, x, UNMERGED, *others, **kwargs)
        assert torch.equal(adapter.mlp_half(block, half), tokens_of(expected))


@needs("Phi-4")
def test_phi_4_is_refused_where_transformers_computes_it_causally():
    """Without a mask, its is_causal makes fused attention causal; eager attention takes no notice of it."""
    causal = build("Phi-4", attn_implementation="sdpa")
    with torch.no_grad():
        assert (causal(photo())[0] - build("Phi-4")(photo())[0]).abs().max() > 1
    with pytest.raises(ValueError, match=r"causally with attn_implementation='sdpa'.*attn_implementation='eager'"):
        apply_algm(causal)


@needs("ViTPose")
def test_vitpose_is_refused_with_an_expert_for_each_data_set():
    with pytest.raises(ValueError, match=r"VitPoseBackboneLayer, its MLP has an expert for each data set"):
        apply_algm(build("ViTPose", num_experts=2, part_features=16))


@torch.no_grad()
@needs("ViTPose")
def test_vitpose_predicts_heatmaps():
    config = transformers.VitPoseConfig(backbone_config=EVERY["ViTPose"].config(out_indices=[5]))
    model = huggingface.enliven(transformers.VitPoseForPoseEstimation(config))
    expected = model(photo()).heatmaps
    apply_algm(model, **SETTINGS)
    assert model(photo()).heatmaps.shape == expected.shape
    assert model.algm.tokens_per_layer[-1] < 30
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model(photo()).heatmaps, expected)


@needs("MGP-STR")
def test_mgp_str_has_no_maps_of_merged_layers():
    model = apply_algm(build("MGP-STR"), **SETTINGS)
    with pytest.raises(ValueError, match=r"output_attentions=True: .*beside its tokens.*remove_algm"):
        model(photo(), output_attentions=True)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in ("Idefics 2", "Idefics 3", "SmolVLM") if family in EVERY])
def test_padded_images_are_refused(family):
    model = apply_algm(build(family), **SETTINGS)
    whole = torch.ones(2, 6, 5, dtype=torch.bool)
    assert torch.equal(model(photo(), whole)[0], model(photo())[0])
    whole[1, :, 4] = False
    with pytest.raises(ValueError, match="patch_attention_mask leaves patches out"):
        model(photo(), whole)


@needs("RADIO")
def test_radio_refuses_images_end_to_end():
    model = apply_algm(build("RADIO"), **SETTINGS)
    rows = huggingface.patches(photo())["pixel_values"].flatten(0, 1)
    with pytest.raises(ValueError, match=r"image_grid_hw=\[\[6, 5\], \[6, 5\]\].*end to end"):
        model(rows, image_grid_hw=torch.tensor([[6, 5], [6, 5]]))


@torch.no_grad()
@needs("MLCD")
def test_mlcd_has_maps_of_one_image():
    model = apply_algm(build("MLCD", attn_implementation="eager"), **SETTINGS)
    if returns_tuple(blocks_of(model)[0]):
        pytest.skip("this release returns maps beside the tokens, and none of merged layers")
    maps = model(photo(batch=1), output_attentions=True).attentions
    assert [x.shape[-1] for x in maps] == [31, *model.algm.tokens_per_layer[:-1]]
    model.algm.batch = "min"
    with pytest.raises(ValueError, match=r"output_attentions=True: .*one image at a time"):
        model(photo(), output_attentions=True)


@torch.no_grad()
@needs("MLCD")
def test_mlcd_treats_images_of_a_batch_as_it_does_one_alone():
    model = apply_algm(build("MLCD"), **SETTINGS)
    together = model(photo()).last_hidden_state
    for image, expected in zip(photo(), together, strict=True):
        torch.testing.assert_close(model(image[None]).last_hidden_state[0], expected, atol=1e-4, rtol=1e-4)
