"""transformers' models with inputs of their own: text beside the image, SigLIP 2's patches, ViT-MAE's noise."""

import pytest
import torch
import transformers

from algm_patch import apply_algm
from tests.support import models_huggingface as huggingface
from tests.support.contract import SETTINGS
from tests.support.models_huggingface import FAMILIES, build, enliven, inputs, photo

WHOLE = {
    "CLIPModel": ("CLIP", "CLIPConfig"),
    "SiglipModel": ("SigLIP", "SiglipConfig"),
    "Siglip2Model": ("SigLIP 2", "Siglip2Config"),
}
WHOLE = {name: kind for name, kind in WHOLE.items() if hasattr(transformers, name)}


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_the_text_tower_stays_as_it_is(name):
    family, config = WHOLE[name][0], getattr(transformers, WHOLE[name][1])
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = FAMILIES[family].config().to_dict()
    torch.manual_seed(0)
    model = enliven(getattr(transformers, name)(config(text_config={**text, "vocab_size": 99}, vision_config=vision)))
    arguments = {**inputs(family, photo()), "input_ids": torch.arange(1, 13).view(2, 6)}
    plain, text_layer = model(**arguments), type(model.text_model.encoder.layers[0])
    apply_algm(model, **SETTINGS)
    merged = model(**arguments)
    assert torch.equal(merged.text_embeds, plain.text_embeds)
    assert not torch.allclose(merged.image_embeds, plain.image_embeds, atol=1e-3)
    assert len(model.algm.tokens_per_layer) == 5
    assert type(model.text_model.encoder.layers[0]) is text_layer
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model(**arguments).image_embeds, plain.image_embeds)


@pytest.mark.skipif("SigLIP 2" not in FAMILIES, reason="this release has no SigLIP 2")
@torch.no_grad()
def test_siglip2_wants_one_grid_in_the_batch():
    model = apply_algm(build("SigLIP 2"), **SETTINGS)
    arguments = huggingface.patches(photo())
    for shapes in ([[6, 5], [5, 6]], [[5, 5], [5, 5]]):
        with pytest.raises(ValueError, match=r"spatial_shapes=\[\[.*for 30 patches.*one grid .* no padding"):
            model(**{**arguments, "spatial_shapes": torch.tensor(shapes)})
    assert model(**arguments).last_hidden_state.shape == (2, 30, 64)
    assert "grid 6x5 + 0 prefix" in repr(model.algm)


@torch.no_grad()
def test_vit_mae_must_neither_drop_nor_shuffle():
    model = apply_algm(build("ViT-MAE"), **SETTINGS)
    with pytest.raises(ValueError, match=r"mask_ratio = 0 and pass noise=torch.arange\(30\).expand\(2, -1\)"):
        model(photo(), interpolate_pos_encoding=True)
    model.config.mask_ratio = 0.5
    with pytest.raises(ValueError, match="drops and shuffles"):
        model(**inputs("ViT-MAE", photo()))


@torch.no_grad()
def test_vit_mae_for_pretraining():
    model = build(
        "ViT-MAE",
        "ViTMAEForPreTraining",
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
    )
    image, noise = photo(grid=(6, 6)), torch.arange(36).expand(2, -1)
    expected = model(image, noise=noise).logits
    apply_algm(model, **SETTINGS)
    assert model(image, noise=noise).logits.shape == expected.shape
    assert len(model.algm.tokens_per_layer) == 5
